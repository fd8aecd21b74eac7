"""Images that do not decode at run time: named, or substituted by the next sample, whatever the batch and the world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench import pillow_reference as reference
from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, CenterCrop, training_views
from pipeline.data.dataset import Dataset, Split
from pipeline.data.loader import Batch, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
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
