"""Splits kept in memory give the batches of the DALI path, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import Batch, LoaderConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.loader import evaluation_batches, training_batches
from pipeline.data.memory import decoded, fits_in_memory
from pipeline.data.order import Order
from pipeline.data.views import CenterCrop
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import statistics_of_size, write_dataset

CPU = torch.device("cpu")
IN_MEMORY = LoaderConfig(threads=1)
DECODING = dataclasses.replace(IN_MEMORY, in_memory_mb=0)
STATISTICS = statistics_of_size(32)


def train(split: Split, config: LoaderConfig, colour: float = 0.0, rows: slice = slice(4, 12)) -> list[Batch]:
    augment = AugmentConfig(kind="pad-crop", crop=32, colour=colour)
    order = Order(len(split), 16, seed=5)
    with training_batches(split, order, augment, STATISTICS, rows, 2, 9, CPU, config) as batches:
        return list(batches)


def evaluate(split: Split, config: LoaderConfig) -> list[Batch]:
    view, blocks = CenterCrop(short_side=32, crop=32), [np.arange(20), np.array([49, 3]), np.array([7])]
    with evaluation_batches(split, view, STATISTICS, blocks, CPU, config) as batches:
        return list(batches)


@pytest.mark.parametrize("colour", [0.0, 0.1])
def test_training_batches_are_those_of_the_decoding_loader(tiny_images: Dataset, colour: float) -> None:
    split = tiny_images.split("train")
    assert fits_in_memory(split, 32, IN_MEMORY) and not fits_in_memory(split, 32, DECODING)
    same(train(split, IN_MEMORY, colour), train(split, DECODING, colour))


def test_evaluation_batches_are_those_of_the_decoding_loader(tiny_images: Dataset) -> None:
    split = tiny_images.split("train")
    same(evaluate(split, IN_MEMORY), evaluate(split, DECODING))


def same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.ids, other.ids)


def test_a_split_is_decoded_once(tmp_path: Path) -> None:
    split = write_dataset(tmp_path / "data", [encode(photograph(n, 32, 32), "PNG") for n in range(50)]).split("train")
    first = train(split, IN_MEMORY)
    for shard in (tmp_path / "data" / "train").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    same(train(split, IN_MEMORY), first)
    pixels = decoded(split, 32, CPU, IN_MEMORY)
    assert pixels.shape == (50, 32, 32, 3) and pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels[7], np.asarray(photograph(7, 32, 32)))


def test_a_sample_that_does_not_decode_is_named(make_dataset: Callable[..., Dataset]) -> None:
    images = [encode(photograph(n, 32, 32), "PNG") for n in range(50)]
    split = make_dataset([*images[:20], images[20][:60], *images[21:]]).split("train")
    for config in (IN_MEMORY, dataclasses.replace(IN_MEMORY, on_decode_error="substitute")):
        assert fits_in_memory(split, 32, config) == (config is IN_MEMORY)
    with pytest.raises(UserError, match=r"image0020.*does not decode"):
        train(split, IN_MEMORY)
    assert len(train(split, dataclasses.replace(IN_MEMORY, on_decode_error="substitute"))) == 7


def test_images_of_other_sizes_are_not_kept(varied_jpegs: Dataset) -> None:
    assert not fits_in_memory(varied_jpegs.split("train"), 32, IN_MEMORY)
