"""Images held out as val: against the rule written out by hand, for sources that grow, hold copies or are prepared in parts."""

import hashlib
import json
import os
import shutil
from fractions import Fraction

import numpy as np
import pytest

from data_prep import hold_out, prepare, shard_imagenet
from data_prep.hold_out import amount
from data_prep.sources import class_folders
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from tests.images import encode, smooth

OPTIONS = ["--samples-per-shard", "16", "--statistics-size", "32", "--statistics-short-side", "32", "--workers", "1"]
SIZES = {"Bär 2": 10, "cat": 14, "dog": 5, "eel": 2, "fly": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """train/CLASS/NUMBER.jpg, all different; SIZES has the number of images of each class."""
    root, generator = tmp_path_factory.mktemp("own") / "source", np.random.default_rng(2)
    for name, size in SIZES.items():
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(size):
            (folder / f"{number}.jpg").write_bytes(encode(smooth(generator, 34, 40)))
    return root


@pytest.fixture
def source(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "source")


def names(listing):
    return {f"{listing.classes[label]}/{os.fsdecode(name)}" for label, name in listing.rows[["label", "name"]].tolist()}


def drawn(source, share, seed=0):
    train, val = hold_out.hold_out(class_folders(source / "train"), share, seed)
    assert not names(train) & names(val) and len(train) + len(val) == sum(1 for _ in (source / "train").glob("*/*"))
    return names(val)


@pytest.mark.parametrize(
    ("share", "held"),
    [("0.1", [1, 1, 1, 1, 0]), ("1/4", [3, 4, 1, 1, 0]), ("0.9", [9, 13, 4, 1, 0]), ("0.0001", [1, 1, 1, 1, 0])],
)
def test_a_share_of_every_class_by_the_hash_of_its_names(source, share, held):
    """Half up: a quarter of 10 are 3, of 14 are 4 (3.5), of 5 are 1 (1.25)."""
    expected = set()
    for (name, size), count in zip(SIZES.items(), held, strict=True):
        by_hash = sorted(
            (f"{number}.jpg" for number in range(size)),
            key=lambda file: hashlib.sha256(f"7\0{name}\0{file}".encode()).digest(),
        )
        expected |= {f"{name}/{file}" for file in by_hash[:count]}
    assert drawn(source, Fraction(share), seed=7) == expected
    assert drawn(source, Fraction(share), seed=8) != expected or share == "0.9"


def test_more_images_of_one_class_move_none_of_another(source):
    before = drawn(source, Fraction(1, 5))
    for number in range(100, 110):
        (source / "train/cat" / f"{number}.jpg").write_bytes(b"%d" % number)
    (source / "train/ape").mkdir()
    for number in range(5):
        (source / "train/ape" / f"{number}.jpg").write_bytes(b"ape %d" % number)
    after = drawn(source, Fraction(1, 5))
    assert {name for name in before if not name.startswith("cat/")} == {
        name for name in after if not name.startswith(("cat/", "ape/"))
    }
    cats = [{name for name in held if name.startswith("cat/")} for held in (before, after)]
    assert (len(cats[0]), len(cats[1])) == (3, 5) and any(name.startswith("ape/") for name in after)


def test_copies_stay_on_one_side_and_are_said_where_two_classes_have_them(source, capsys):
    for number in range(4):  # each cat and dog twice, with other names; every copy is of equal size with its original
        shutil.copy(source / f"train/dog/{number}.jpg", source / f"train/dog/again-{number}.jpg")
    for share in ("0.2", "0.5", "0.7"):
        val = drawn(source, Fraction(share))
        for number in range(4):
            assert (f"dog/{number}.jpg" in val) == (f"dog/again-{number}.jpg" in val)
    assert "warning" not in capsys.readouterr().err
    both = next(iter(sorted(name for name in drawn(source, Fraction(1, 5)) if name.startswith("cat/"))))
    shutil.copy(source / "train" / both, source / "train/fly/same.jpg")  # fly has two now, of which one stays in train
    shutil.copy(source / "train" / both, source / "train/fly/same too.jpg")
    (source / "train/fly/0.jpg").unlink()  # nothing but copies: none can be held out
    held = drawn(source, Fraction(1, 5))
    assert both in held and not any(name.startswith("fly/") for name in held)
    assert f"1 of the {len(held)} val images are in train too, byte for byte ({both})" in capsys.readouterr().err


def test_images_of_equal_size_are_not_copies(source):
    for number in range(8):  # equal but for their last byte, which no probe of the middle sees
        (source / "train/eel" / f"same-size-{number}.jpg").write_bytes(bytes(2000) + bytes([number]))
    assert len([name for name in drawn(source, Fraction(1, 2)) if name.startswith("eel/")]) == 5


def test_a_dataset_with_held_out_images(pictures, tmp_path, hashes, capsys, monkeypatch):
    """The manifest says what was held out; an interrupted preparation and any number of workers give the same bytes."""
    command = [str(pictures), str(tmp_path / "dataset"), "--hold-out", "0.2", *OPTIONS]
    shard_imagenet.main(command)
    dataset = Dataset(tmp_path / "dataset")
    sizes = {name: len(dataset.split(name)) for name in dataset.manifest.splits}
    assert sizes == {"train": 25, "val": 7}  # 2 of 10, 3 of 14, 1 of 5, 1 of 2, none of 1
    note = {"split": "train", "of": 32, "drawn": 7, "share": 0.2}
    assert dataset.manifest.notes["preparation"]["held_out"] == {"val": note}
    pixels = [dataset.split(name).read(row) for name in sizes for row in range(sizes[name])]
    assert sorted(pixels) == sorted(path.read_bytes() for path in pictures.rglob("*.jpg"))
    assert f"val: 7 images, held out of class folders {pictures / 'train'}" in capsys.readouterr().err
    shard_imagenet.main(command)
    assert "already done" in capsys.readouterr().out
    again = [str(pictures), str(tmp_path / "again"), "--hold-out", "0.2", *OPTIONS[:-1], "2"]
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_dataset", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shard_imagenet.main(again)
    shard_imagenet.main(again)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "dataset")
    for other in (["--hold-out", "0.3"], []):
        with pytest.raises(UserError, match="already holds a dataset"):
            shard_imagenet.main([*command[:2], *other, *OPTIONS])


def test_a_count_is_drawn_from_all_classes_together(pictures, tmp_path):
    shard_imagenet.main([str(pictures), str(tmp_path / "dataset"), "--hold-out", "6", "--seed", "1", *OPTIONS])
    dataset = Dataset(tmp_path / "dataset")
    assert [len(dataset.split(name)) for name in ("train", "val")] == [26, 6]
    listed = sorted(f"{path.parent.name}_{path.stem}" for path in pictures.rglob("*.jpg"))  # class, then name
    words = np.random.Philox(key=1).random_raw(len(listed))
    held = {listed[at].replace("ä", "-").replace(" ", "-") for at in np.argsort(words, kind="stable")[:6]}
    assert set(dataset.split("val").samples["key"].tolist()) == {name.encode() for name in held}
    assert dataset.manifest.notes["preparation"]["held_out"]["val"]["count"] == 6


def test_what_cannot_be_held_out_is_refused(source, tmp_path):
    def refused(sentence, *options):
        with pytest.raises(UserError, match=sentence):
            shard_imagenet.main([str(source), str(tmp_path / "refused"), *options, *OPTIONS])
        assert not (tmp_path / "refused").exists()

    for word in ("0", "-0.1", "1.5", "many", "0/0", "inf", "1.0", "2.0", "2/2", "1e400"):
        refused("neither a share of the training images, below 1, such as 0.1, nor a number", f"--hold-out={word}")
    refused("must be from 1 to 31 training images", "--hold-out", "32")
    refused("takes every image of the class", "--hold-out", "31")
    shutil.copytree(source / "train", source / "validation")
    refused("has a val split already", "--hold-out", "0.1")
    shutil.rmtree(source / "validation")
    for path in (source / "train").glob("*/*"):
        if path.stem != "0":
            path.unlink()
    refused("holds nothing out", "--hold-out", "0.5")


def test_without_a_val_split_the_command_names_the_option(source, tmp_path, capsys):
    shard_imagenet.main([str(source), str(tmp_path / "dataset"), *OPTIONS])
    assert "there is no val split" in (printed := capsys.readouterr().err) and "--hold-out 0.1 makes one" in printed
    assert "held_out" not in json.dumps(Dataset(tmp_path / "dataset").manifest.notes)


def test_the_words_of_the_option():
    assert [amount(text) for text in ("0.1", "1/8", "5000", "1")] == [Fraction(1, 10), Fraction(1, 8), 5000, 1]
    assert isinstance(amount("5000"), int)
