"""Area crops, RandAugment and erasing on their way through the loader: every path makes the same images of the same numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import pillow_reference as reference
from pipeline.data.augment import AugmentConfig, ResizeStage, training_views
from pipeline.data.batch import Batch, LoaderConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.erasing import EraseConfig
from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Normalization
from pipeline.data.loader import evaluation_batches, training_batches
from pipeline.data.memory import MemoryProducer
from pipeline.data.operations import apply
from pipeline.data.order import Order
from pipeline.data.plans import Plan, training_plan
from pipeline.data.rand_augment import NO_OPERATION, RandAugmentConfig
from pipeline.data.views import CenterCrop, Views
from tests.pipeline.data.fake_gpu import CPU, GpuFinish
from tests.pipeline.data.small_datasets import statistics_of_size
from tests.pipeline.data.test_gpu_path import collect, produced

CONFIG = LoaderConfig(threads=2)
VARIED = AugmentConfig(
    kind="area-crop",
    crop=64,
    rand_augment=RandAugmentConfig(operations=2, probability=0.7),
    erase=EraseConfig(probability=0.4),
)
PADDED = replace(VARIED, kind="pad-crop", crop=32)
STATISTICS = {side: statistics_of_size(side) for side in (32, 48, 64)}
SEED = 3


def train(
    split: Split,
    augment: AugmentConfig,
    rows: slice,
    start: int,
    stop: int,
    config: LoaderConfig = CONFIG,
    batch: int = 16,
) -> list[Batch]:
    order = Order(len(split), batch, SEED)
    with training_batches(split, order, augment, STATISTICS[augment.crop], rows, start, stop, CPU, config) as batches:
        return list(batches)


def views_of(split: Split, augment: AugmentConfig, iteration: int, batch: int = 16) -> Views:
    shown = Order(len(split), batch, SEED).minibatch(iteration)
    heights, widths = (split.samples[side][shown.ids].astype(np.int64) for side in ("height", "width"))
    return training_views(SEED, shown.epochs, shown.ids, heights, widths, augment, STATISTICS[augment.crop])


@pytest.mark.parametrize(
    "augment", [VARIED, PADDED, replace(VARIED, kind="scale-crop", short_side=(72, 96))], ids=lambda one: one.kind
)
def test_images_depend_on_seed_epoch_and_id_alone(
    varied_jpegs: Dataset, tiny_images: Dataset, augment: AugmentConfig
) -> None:
    """Shared among 2, 3 and 16 ranks, with other threads, in smaller mini-batches, and from any iteration on."""
    split = (tiny_images if augment.kind == "pad-crop" else varied_jpegs).split("train")
    whole = train(split, augment, slice(0, 16), 0, 4)
    assert all(batch.images.shape == (16, augment.crop, augment.crop, 3) for batch in whole)
    other = LoaderConfig(threads=1, read_threads=1, decode_ahead=1, in_memory_mb=0)
    for edges in ((0, 8, 16), (0, 5, 10, 16), range(17)):
        ranks = [train(split, augment, slice(a, b), 1, 3, other) for a, b in itertools.pairwise(edges)]
        for number, expected in enumerate(whole[1:3]):
            assert torch.equal(torch.cat([rank[number].images for rank in ranks]), expected.images)
    resumed = train(split, augment, slice(0, 16), 2, 4)
    assert all(torch.equal(one.images, two.images) for one, two in zip(resumed, whole[2:], strict=True))
    halves = train(split, augment, slice(0, 8), 0, 8, batch=8)
    assert torch.equal(torch.cat([batch.images for batch in halves]), torch.cat([batch.images for batch in whole]))


def test_an_image_is_cropped_mirrored_varied_normalized_and_erased(varied_jpegs: Dataset) -> None:
    """From the drawn numbers, with Pillow: its `box` resamples a part of an image as the whole would be resampled."""
    split, mean = varied_jpegs.split("train"), STATISTICS[64].mean_image
    plain, erased = replace(VARIED, rand_augment=RandAugmentConfig()), 0
    for iteration, batch in enumerate(train(split, plain, slice(0, 16), 0, 5)):
        views = views_of(split, plain, iteration)
        for row, sample in enumerate(batch.ids):
            start, size = views.window_start[row] + views.roi_start[row], views.roi_end[row] - views.roi_start[row]
            (top, left), (height, width) = start.tolist(), size.tolist()
            image = reference.decoded(split.read(sample)).resize(
                (64, 64), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
            )
            expected = np.asarray(image, np.float32)[:, :: -1 if views.mirror[row] else 1] - mean + views.colour[row]
            y, x, down, right = views.erased[row]
            expected[y : y + down, x : x + right] = 0
            found = batch.images[row].numpy()
            assert (found[y : y + down, x : x + right] == 0).all()
            erased += bool(down)
            # As in test_pixels.py: one grey level, but at the edges of a source image.
            assert reference.psnr(found, expected) > 50 and np.abs(found - expected)[1:-1, 1:-1].max() <= 1.01
    assert erased > 15


def test_operations_work_on_the_finished_crop(varied_jpegs: Dataset) -> None:
    """Reference: the images of a loader without them, as whole grey levels; the fill is the mean colour."""
    split = varied_jpegs.split("train")
    varied = replace(VARIED, colour=0.0, erase=EraseConfig())
    mean, fill = STATISTICS[64].mean_image, np.rint(STATISTICS[64].mean_image.mean(axis=(0, 1))).tolist()
    before = train(split, replace(varied, rand_augment=RandAugmentConfig()), slice(0, 16), 0, 4)
    seen = set()
    for iteration, batch in enumerate(train(split, varied, slice(0, 16), 0, 4)):
        views, sources = views_of(split, varied, iteration), before[iteration].images.numpy() + mean
        for row in range(16):
            image = Image.fromarray(np.rint(sources[row]).astype(np.uint8))
            for operation, magnitude in zip(views.operations[row], views.magnitudes[row], strict=True):
                if operation != NO_OPERATION:
                    image = apply(image, int(operation), float(magnitude), [int(level) for level in fill])
                    seen.add(int(operation))
            np.testing.assert_array_equal(batch.images[row].numpy(), np.asarray(image, np.float32) - mean)
    assert len(seen) == 15


def gpus(plan: Plan, rung: Any) -> list[Batch]:
    """The batches of a plan by the branches for a GPU."""
    graph = Graph(plan.kind, plan.crop, rung, None if plan.varies else plan.normalization)
    return produced(plan.stream, graph, GpuFinish(plan.normalization, pad=pad_of(plan)))


def pad_of(plan: Plan) -> int | None:
    return 4 if plan.kind == "source" else None


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("rung", ["gpu", "gpu-whole", "cpu"])
def test_a_gpu_makes_the_same_images_but_for_last_grey_levels(varied_jpegs: Dataset, rung: Any) -> None:
    """Played by the CPU: without operations to the bit, with them as far as torchvision's tensors equal Pillow's images."""
    split = varied_jpegs.split("train")
    for augment in (replace(VARIED, rand_augment=RandAugmentConfig()), VARIED):
        order = Order(len(split), 16, SEED)
        batches = [order.minibatch(iteration) for iteration in range(3)]
        plan = training_plan(split, SEED, augment, STATISTICS[64], 16, batches)
        assert plan.varies == (augment is VARIED)
        assert (plan.graph(CONFIG, torch.device("cuda")).normalization is None) == plan.varies
        expected = train(split, augment, slice(0, 16), 0, 3)
        for one, two in zip(gpus(plan, rung), expected, strict=True):
            assert one.images.dtype == torch.float32
            if augment is VARIED:
                off = (one.images - two.images).abs().amax(dim=-1) > 2.01  # of two operations
                assert off.double().mean() < 0.03
            else:
                assert torch.equal(one.images, two.images)


@pytest.mark.usefixtures("fake_gpu")
def test_images_kept_in_memory_become_what_decoded_ones_do(tiny_images: Dataset) -> None:
    split = tiny_images.split("train")
    decoded = train(split, PADDED, slice(0, 16), 0, 4, replace(CONFIG, in_memory_mb=0))
    kept = train(split, PADDED, slice(0, 16), 0, 4)
    assert all(torch.equal(one.images, two.images) for one, two in zip(decoded, kept, strict=True))
    batches = [Order(len(split), 16, SEED).minibatch(iteration) for iteration in range(4)]
    plan = training_plan(split, SEED, PADDED, STATISTICS[32], 16, batches)
    on_gpu = gpus(plan, "gpu")
    kept_on_gpu = collect(MemoryProducer(plan.stream, 32, GpuFinish(plan.normalization, pad=4), CONFIG))
    for one, two, three in zip(on_gpu, kept_on_gpu, decoded, strict=True):
        assert torch.equal(one.images, two.images)
        assert ((one.images - three.images).abs().amax(dim=-1) > 2.01).double().mean() < 0.1


def test_a_substitute_is_varied_as_the_sample_that_it_is(varied_jpegs: Dataset, make_dataset: Any) -> None:
    """Where sample 4 is damaged, sample 5 takes its place, with the numbers of sample 5 in that epoch."""
    split = varied_jpegs.split("train")
    images = [split.read(sample) for sample in range(12)]
    sound = make_dataset(images, "sound").split("train")
    damaged = make_dataset([*images[:4], images[4][: len(images[4]) // 3], *images[5:]], "damaged").split("train")
    substituting = LoaderConfig(threads=2, on_decode_error="substitute")
    augment = replace(VARIED, crop=48)
    expected = train(sound, augment, slice(0, 12), 0, 2, batch=12)
    for one, two in zip(train(damaged, augment, slice(0, 12), 0, 2, substituting, batch=12), expected, strict=True):
        assert len(one.substitutions) == 1
        for row, sample in enumerate(two.ids):
            source = row if sample != 4 else two.ids.tolist().index(5)
            assert torch.equal(one.images[row], two.images[source])


def test_no_variation_reaches_kind_none_and_evaluations(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    plain = AugmentConfig(kind="none", crop=64, short_side=(72, 72))
    varied = replace(plain, rand_augment=VARIED.rand_augment, erase=VARIED.erase)
    expected, ids = train(split, plain, slice(0, 16), 0, 1)[0], Order(len(split), 16, SEED).minibatch(0).ids
    assert torch.equal(train(split, varied, slice(0, 16), 0, 1)[0].images, expected.images)
    view = CenterCrop(short_side=72, crop=64)
    with evaluation_batches(split, view, STATISTICS[64], [ids], CPU, CONFIG) as batches:
        assert torch.equal(next(batches).images, expected.images)


def test_stages_have_boxes_and_erased_parts_of_their_size(varied_jpegs: Dataset) -> None:
    """Reference: a loader of the one size. The box of the source is the same: it does not depend on the crop."""
    split, order = varied_jpegs.split("train"), Order(40, 16, SEED)
    staged = replace(VARIED, stages=(ResizeStage(until=2, crop=32),))
    with training_batches(split, order, staged, STATISTICS[64], slice(0, 16), 0, 4, CPU, CONFIG) as batches:
        found = list(batches)
    normal = Normalization.of(STATISTICS[64], 32)
    small = replace(VARIED, crop=32)
    with training_batches(
        split, order, small, STATISTICS[64], slice(0, 16), 0, 2, CPU, CONFIG, normalization=normal
    ) as batches:
        expected = [*batches, *train(split, VARIED, slice(0, 16), 2, 4)]
    assert [batch.images.shape[1] for batch in found] == [32, 32, 64, 64]
    assert all(torch.equal(one.images, two.images) for one, two in zip(found, expected, strict=True))
    np.testing.assert_array_equal(views_of(split, VARIED, 0).crop_start, views_of(split, small, 0).crop_start)


def test_the_fill_is_the_mean_colour_in_whole_grey_levels() -> None:
    image = np.zeros((4, 4, 3), np.float32) + np.array([10.4, 20.5, 300.0], np.float32)
    assert Finish(Normalization(image), CPU, torch.float32)._fill == [10, 20, 255]
    assert Finish(Normalization(image[0, 0]), CPU, torch.float32)._fill == [10, 20, 255]
