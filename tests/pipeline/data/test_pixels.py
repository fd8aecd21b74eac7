"""Every graph against the Pillow reference: resize whole, crop, flip, colour, mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench import pillow_reference as reference
from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Dataset, Split
from pipeline.data.loader import LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
from pipeline.data.views import CenterCrop, TenCrop, WholeImage, five_crop_starts, shape_blocks
from tests.pipeline.data.small_datasets import statistics_of_size

CPU = torch.device("cpu")
CONFIG = LoaderConfig(threads=2)
STATISTICS = statistics_of_size(224)
# Pillow rounds to whole grey levels between the two passes of its filter, DALI does not: they differ by one level in
# places, which is 53 dB and more. At the edge of the source DALI repeats the last pixel where Pillow leaves it out of
# the filter: the outermost row and column of a crop may differ more.
BOUND = 53.0
GREY_LEVELS = 1.001
# Against a resize that never rounds, each pixel is the right one rounded once: off by half a grey level and DALI's float32.
ROUNDED_ONCE = 0.51


def check(images: torch.Tensor, expected: NDArray[np.float32], place: str) -> None:
    quality = reference.psnr(images.numpy(), expected)
    assert quality >= BOUND, f"{place}: {quality:.1f} dB"
    assert np.abs(images.numpy() - expected)[1:-1, 1:-1].max() <= GREY_LEVELS, place


def check_training(split: Split, epochs: int) -> None:
    """Both references from the same drawn numbers."""
    order, config = Order(len(split), len(split), seed=3), AugmentConfig()
    rows = slice(0, len(split))
    with training_batches(split, order, config, STATISTICS, rows, 0, epochs, CPU, CONFIG) as batches:
        for epoch, batch in enumerate(batches):
            table = split.samples[batch.ids]
            sizes = (table["height"].astype(np.int64), table["width"].astype(np.int64))
            views = training_views(3, np.full(len(split), epoch), batch.ids, *sizes, config, STATISTICS)
            for row, sample in enumerate(batch.ids):
                geometry = (
                    split.read(sample), views.resized[row], views.crop_start[row], 224, bool(views.mirror[row])
                )  # fmt: skip
                colour, mean = views.colour[row], STATISTICS.mean_image
                check(batch.images[row], reference.scale_crop(*geometry, colour, mean), split.describe(sample))
                error = batch.images[row].numpy() - (reference.exact_crop(*geometry) + colour - mean)
                assert np.abs(error)[1:-1, 1:-1].max() < ROUNDED_ONCE, split.describe(sample)


def shape_at(encoded: bytes, short_side: int) -> NDArray[np.int64]:
    width, height = reference.decoded(encoded).size
    factor = short_side / min(height, width)
    return np.array([np.floor(height * factor + 0.5), np.floor(width * factor + 0.5)], np.int64)


def check_evaluation(split: Split) -> None:
    blocks = [np.arange(len(split))]
    with evaluation_batches(split, CenterCrop(), STATISTICS, blocks, CPU, CONFIG) as batches:
        centre = next(batches)
    with evaluation_batches(split, TenCrop(), STATISTICS, blocks, CPU, CONFIG) as batches:
        ten = next(batches)
    for sample in range(len(split)):
        encoded = split.read(sample)
        shape = shape_at(encoded, 256)
        whole = reference.resized(encoded, shape)
        starts = five_crop_starts(shape[None], 224)[0]
        crops = [np.asarray(reference.crop(whole, start, 224), np.float32) - STATISTICS.mean_image for start in starts]
        check(centre.images[sample], crops[4], f"centre crop of {split.describe(sample)}")
        for number in range(5):
            check(ten.images[sample, number], crops[number], f"crop {number} of {split.describe(sample)}")


def check_whole_images(split: Split, short_side: int) -> None:
    """The fully convolutional test's images: batches of one shape, every sample once, the channel mean subtracted."""
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    blocks = shape_blocks(shapes, [short_side], size=16)
    seen = []
    with evaluation_batches(split, WholeImage(short_side=short_side), STATISTICS, blocks, CPU, CONFIG) as batches:
        for batch in batches:
            for row, sample in enumerate(batch.ids):
                seen.append(int(sample))
                encoded = split.read(sample)
                whole = np.asarray(reference.resized(encoded, shape_at(encoded, short_side)), np.float32)
                assert min(whole.shape[:2]) == short_side
                check(batch.images[row], whole - STATISTICS.mean_colour, f"whole {split.describe(sample)}")
    assert sorted(seen) == list(range(len(split)))


def test_whole_photographs(varied_jpegs: Dataset) -> None:
    check_whole_images(varied_jpegs.split("train"), 224)


def test_whole_real_images(real_imagenet: Dataset) -> None:
    for short_side in (256, 480):
        check_whole_images(real_imagenet.split("train"), short_side)


def test_training_views_of_photographs(varied_jpegs: Dataset) -> None:
    check_training(varied_jpegs.split("train"), epochs=2)


def test_training_views_of_real_images(real_imagenet: Dataset) -> None:
    check_training(real_imagenet.split("train"), epochs=1)


def test_evaluation_views_of_photographs(varied_jpegs: Dataset) -> None:
    check_evaluation(varied_jpegs.split("train"))


def test_evaluation_views_of_real_images(real_imagenet: Dataset) -> None:
    check_evaluation(real_imagenet.split("train"))


def test_the_channel_mean_at_other_sizes(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    blocks, view = [np.arange(3)], CenterCrop(short_side=128, crop=96)
    with evaluation_batches(split, view, STATISTICS, blocks, CPU, CONFIG) as batches:
        images = next(batches).images + torch.from_numpy(STATISTICS.mean_image.mean(axis=(0, 1)))
    assert (images - images.round()).abs().max() < 0.01  # whole grey levels: one colour was subtracted everywhere


@pytest.mark.parametrize("colour", [0.0, 0.1])
def test_pad_crop_is_that_of_section_4_2(tiny_images: Dataset, colour: float) -> None:
    """The mean image is subtracted before the zeros are put around, so the border is 0 and not minus the mean."""
    split, statistics = tiny_images.split("train"), statistics_of_size(32)
    config = AugmentConfig(kind="pad-crop", crop=32, short_side=(32, 32), colour=colour, pad=4)
    order, size = Order(len(split), 25, seed=9), np.full(25, 32)
    with training_batches(split, order, config, statistics, slice(0, 25), 0, 6, CPU, CONFIG) as batches:
        for iteration, batch in enumerate(batches):
            shown = order.minibatch(iteration)
            views = training_views(9, shown.epochs, shown.ids, size, size, config, statistics)
            for row, sample in enumerate(batch.ids):
                image = np.asarray(reference.decoded(split.read(sample)), np.float32)
                padded = np.pad(image - statistics.mean_image + views.colour[row], ((4, 4), (4, 4), (0, 0)))
                y, x = views.crop_start[row]
                expected = padded[y : y + 32, x : x + 32]
                expected = expected[:, ::-1] if views.mirror[row] else expected
                np.testing.assert_allclose(batch.images[row], expected, atol=1e-4)


def test_none_leaves_images_of_their_size_as_they_are(tiny_images: Dataset) -> None:
    split, statistics = tiny_images.split("train"), statistics_of_size(32)
    config = AugmentConfig(kind="none", crop=32, short_side=(32, 32))
    with training_batches(split, Order(50, 50, 0), config, statistics, slice(0, 50), 0, 1, CPU, CONFIG) as batches:
        batch = next(batches)
    for row, sample in enumerate(batch.ids):
        image = np.asarray(reference.decoded(split.read(sample)), np.float32)
        np.testing.assert_array_equal(batch.images[row], image - statistics.mean_image)
