import hashlib
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.order import MAX_KEY, by_class_and_name, by_stem, permutation, sample_key, unique_keys


@pytest.mark.parametrize(
    ("name", "class_name", "key"),
    [
        (b"n01440764_10026.JPEG", "n01440764", "n01440764_10026"),
        (b"ILSVRC2012_val_00000001.JPEG", "n01440764", "n01440764_ILSVRC2012_val_00000001"),
        (b"ILSVRC2012_test_00000001.JPEG", None, "ILSVRC2012_test_00000001"),
        (b"0007.jpg", "3", "3_0007"),
        (b"3.jpg", "3", "3_3"),
        (b"my cat (1).v2.png", "tabby cat", "tabby-cat_my-cat--1--v2"),
        ("café.jpg".encode(), "naïve", "na-ve_caf-"),
        (b"bad\xff.jpg", "x", "x_bad-"),
    ],
)
def test_key(name, class_name, key):
    assert sample_key(name, class_name) == key


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=130).map(
    lambda text: f"{text}.jpg"
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "a_b", "n01440764", "tabby cat"]), NAMES), max_size=30, unique=True))
def test_any_names_give_unique_keys_that_every_reader_takes(images):
    keys = unique_keys([sample_key(os.fsencode(name), class_name) for class_name, name in images]).tolist()
    assert len(set(keys)) == len(images)
    # One component of a plain tar header's name: no dot (WebDataset), no space (DALI), at most 100 bytes with suffix.
    assert all(re.fullmatch(rb"[A-Za-z0-9_-]{1,96}", key) for key in keys)


def test_long_keys_are_cut_and_stay_apart():
    keys = {sample_key(b"a" * 200 + tail + b".jpg", "c") for tail in (b"1", b"2")}
    assert len(keys) == 2
    assert all(len(key) <= MAX_KEY and re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def test_repeated_keys_are_told_apart_in_order():
    keys = unique_keys(["a-b", "c", "a-b", "a-b-2", "a-b", "c"])
    assert keys.tolist() == [b"a-b", b"c", b"a-b-3", b"a-b-2", b"a-b-4", b"c-2"]


def test_permutation_never_changes():
    # The digest of the order that NumPy 2.4 gave: datasets made by any later version must equal those made before.
    digest = hashlib.sha256(permutation(10_000, 7).astype("<i8").tobytes()).hexdigest()
    assert digest == "648b6a0f58b8166b1c572962bddf50ab6910ed4f8e27fe0420ca5e7f621540a0"
    assert sorted(permutation(10_000, 7).tolist()) == list(range(10_000))
    assert permutation(10_000, 7).tolist() != permutation(10_000, 8).tolist()


def test_permutation_is_uniform():
    # Chi-squared of where the first element goes, over 2,000 seeds and 10 places: 99.99% quantile of 9 degrees is 33.7.
    places = np.array([permutation(10, seed).tolist().index(0) for seed in range(2_000)])
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_orders_do_not_depend_on_the_listing():
    labels = np.array([1, 0, 1, 0], np.int16)
    names = np.array([b"b.jpg", b"z.jpg", b"a.jpg", b"c.png"])
    assert by_class_and_name(labels, names).tolist() == [3, 1, 2, 0]
    assert by_stem(labels, names).tolist() == [2, 0, 3, 1]
    # By stem, not by file name: the suffix of a longer name's stem must not decide ("a-1.jpg" < "a.jpg").
    assert by_stem(np.zeros(2, np.int16), np.array([b"a-1.jpg", b"a.jpg"])).tolist() == [1, 0]
