"""Images that do not decode at run time: named, or substituted by the next sample, whatever the batch and the world."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench import pillow_reference as reference
from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Dataset, Split
from pipeline.data.finishing import Finish
from pipeline.data.loader import Batch, BatchIterator, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order, Presentations
from pipeline.data.plans import training_plan
from pipeline.data.producer import DaliProducer
from pipeline.data.views import CenterCrop, TenCrop
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import statistics_of_size

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(short_side=(72, 96), crop=64)
STATISTICS = statistics_of_size(64)
SUBSTITUTE = LoaderConfig(threads=2, on_decode_error="substitute")
SEED, BATCH, EPOCHS = 3, 12, 3
DAMAGED = (4, 10, 11)  # 11 is the last sample: its neighbour is 0; 10's next is damaged too


@pytest.fixture
def damaged(make_dataset: Callable[..., Dataset]) -> Split:
    images = [encode(photograph(number, 90, 120)) for number in range(12)]
    images[4] = b"not an image"
    images[10] = images[10][:40]
    images[11] = b"\0"
    return make_dataset(images).split("train")


def train(split: Split, rows: slice, config: LoaderConfig = SUBSTITUTE) -> list[Batch]:
    order = Order(len(split), BATCH, SEED)
    with training_batches(split, order, AUGMENT, STATISTICS, rows, 0, EPOCHS, CPU, config) as batches:
        found = list(batches)
        assert batches.substituted == sum(len(batch.substitutions) for batch in found)
        return found


def test_the_next_sound_sample_takes_the_place(damaged: Split) -> None:
    order = Order(len(damaged), BATCH, SEED)
    expected_ids = {4: 5, 10: 0, 11: 0}
    for epoch, batch in enumerate(train(damaged, slice(0, BATCH))):
        planned = order.minibatch(epoch).ids
        np.testing.assert_array_equal(batch.ids, [expected_ids.get(int(sample), sample) for sample in planned])
        np.testing.assert_array_equal(batch.labels, damaged.labels[batch.ids])
        assert len(batch.substitutions) == len(DAMAGED)
        sentence = next(one for one in batch.substitutions if "image0004" in one)
        assert "does not decode" in sentence and "substituted by sample 5" in sentence
        # The substitute is seen as the presentation (epoch, its own id) would be.
        table = damaged.samples[batch.ids]
        sizes = (table["height"].astype(np.int64), table["width"].astype(np.int64))
        views = training_views(SEED, np.full(BATCH, epoch), batch.ids, *sizes, AUGMENT, STATISTICS)
        for row, sample in enumerate(batch.ids):
            expected = reference.scale_crop(
                damaged.read(sample), views.resized[row], views.crop_start[row], 64,
                bool(views.mirror[row]), views.colour[row], STATISTICS.mean_image,
            )  # fmt: skip
            assert reference.psnr(batch.images[row].numpy(), expected) > 50


def test_what_is_substituted_does_not_depend_on_the_world(damaged: Split) -> None:
    whole = train(damaged, slice(0, BATCH))
    parts = [train(damaged, slice(start, start + 4)) for start in (0, 4, 8)]
    for epoch, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[epoch].images for part in parts]), batch.images)
        np.testing.assert_array_equal(np.concatenate([part[epoch].ids for part in parts]), batch.ids)


def test_nothing_is_substituted_where_nothing_is_damaged(varied_jpegs: Dataset) -> None:
    assert not any(batch.substitutions for batch in train(varied_jpegs.split("train"), slice(0, BATCH)))


def test_evaluation_stops_whatever_the_setting(damaged: Split) -> None:
    view, blocks = CenterCrop(short_side=72, crop=64), [np.arange(3), np.arange(3, 6)]
    with (
        pytest.raises(UserError, match=r"image0004 .* does not decode"),
        evaluation_batches(damaged, view, STATISTICS, blocks, CPU, SUBSTITUTE) as batches,
    ):
        list(batches)


def test_a_dataset_that_is_damaged_throughout_stops(make_dataset: Callable[..., Dataset]) -> None:
    split = make_dataset([b"not an image"] * 12).split("train")
    with pytest.raises(UserError, match="samples after it do not decode"):
        train(split, slice(0, 2))


def with_height(image: bytes, height: int) -> bytes:
    """The same JPEG or PNG, whose header claims another height."""
    if image.startswith(b"\x89PNG"):
        body = image[12:20] + struct.pack(">I", height) + image[24:29]
        return image[:12] + body + struct.pack(">I", zlib.crc32(body)) + image[33:]
    place = image.index(b"\xff\xc0") + 5
    return image[:place] + struct.pack(">H", height) + image[place + 2 :]


LARGE = 24  # with 2 threads, DALI reads the headers of more than 12 images in parallel


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("height", [16, 0, 4000])
def test_an_image_of_another_size_than_the_table_says(
    make_dataset: Callable[..., Dataset], kind: str, height: int
) -> None:
    """In the last rows of a large batch DALI would crash."""
    images = [encode(photograph(number, 48, 56), kind) for number in range(LARGE)]
    split = replaced(make_dataset, images, {22: with_height(images[22], height)})
    reason = f"does not decode (its header says {height} x 56 pixels, the sample table 48 x 56)"
    block, view = np.arange(LARGE), TenCrop(short_side=72, crop=64)
    with (
        pytest.raises(UserError, match=re.escape(reason)) as stopped,
        evaluation_batches(split, view, STATISTICS, [block], CPU, SUBSTITUTE) as batches,
    ):
        list(batches)
    assert "sample image0022 (bytes " in str(stopped.value)
    plan = training_plan(split, SEED, AUGMENT, STATISTICS, LARGE, [Presentations(np.zeros_like(block), block)])
    finish = Finish(plan.normalization, CPU, torch.float32)
    with BatchIterator(DaliProducer(plan.stream, plan.graph(SUBSTITUTE, CPU), finish, SUBSTITUTE)) as made:
        (batch,) = made
    np.testing.assert_array_equal(batch.ids, [*range(22), 23, 23])
    assert torch.equal(batch.images[22], batch.images[23])
    (sentence,) = batch.substitutions
    assert "sample image0022 (bytes " in sentence and f"{reason}, substituted by sample 23" in sentence


def test_a_substitute_has_the_tables_size_too(make_dataset: Callable[..., Dataset]) -> None:
    """Sample 2 decodes, in part, but is not what the table describes, and so the view is not that of its presentation."""
    images = [encode(photograph(number, 90, 120)) for number in range(12)]
    split = replaced(make_dataset, images, {1: bytes(len(images[1])), 2: with_height(images[2], 4000)})
    for batch in train(split, slice(0, BATCH)):
        assert len(batch.substitutions) == 2 and not {1, 2} & set(batch.ids.tolist())
        assert all("substituted by sample 3" in sentence for sentence in batch.substitutions)


def replaced(make_dataset: Callable[..., Dataset], images: list[bytes], by: dict[int, bytes]) -> Split:
    """A split of sound images, of which some have other bytes in the shard afterwards."""
    dataset = make_dataset(images, shard_size=len(images))
    split = dataset.split("train")
    with open(dataset.folder / split.info.shards[0].file, "r+b") as shard:
        for sample, image in by.items():
            shard.seek(int(split.samples[sample]["offset"]))
            shard.write(image)
    return split
