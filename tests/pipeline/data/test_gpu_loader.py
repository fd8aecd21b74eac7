"""The loader on an NVIDIA GPU against the loader on the CPU, on every rung on which the GPU decodes the tests' images.

A rung may crash the process that decodes on it. So a child process tries it first, as before a run, and its tests are skipped
where that fails. What the child did not try, truncated images, comes last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench import pillow_reference as reference
from pipeline.base.command import UserError
from pipeline.data import finishing
from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.decoders import RUNGS, Rung
from pipeline.data.loader import Batch, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
from pipeline.data.plans import evaluation_plan, training_plan
from pipeline.data.probe import Probe, trial_of
from pipeline.data.views import CenterCrop, TenCrop, View, WholeImage, shape_blocks
from pipeline.training.replay import CudaGraphs
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import statistics_of_size

pytestmark = pytest.mark.gpu
STATISTICS = statistics_of_size(224)
CUDA = torch.device("cuda", 0)
EVALUATED: tuple[View, ...] = (CenterCrop(), TenCrop(), WholeImage(short_side=224))
Faults = Mapping[Rung, str | None]  # why a rung does not decode here
# nvJPEG's inverse DCT and chroma interpolation are not libjpeg-turbo's to the bit.
BOUND = 35.0


def faults_of(dataset: Dataset) -> Faults:
    """Try every rung with images of a dataset, in graphs of training and of each view, in child processes."""
    split, config = dataset.split("train"), LoaderConfig(threads=2)
    plans = [training_plan(split, 3, AugmentConfig(), STATISTICS, 20)]
    plans += [evaluation_plan(split, view, STATISTICS) for view in EVALUATED]
    return Probe().faults([trial_of(plan.stream, plan.graph(config, CUDA)) for plan in plans], CUDA, RUNGS)


@pytest.fixture(scope="session")
def faults(varied_jpegs: Dataset) -> Faults:
    return faults_of(varied_jpegs)


@pytest.fixture(scope="session")
def faults_of_real_images(real_imagenet: Dataset) -> Faults:
    return faults_of(real_imagenet)


@pytest.fixture(params=RUNGS)
def rung(request: pytest.FixtureRequest, faults: Faults) -> Rung:
    return working(request.param, faults)


@pytest.fixture(params=RUNGS)
def rung_for_real_images(request: pytest.FixtureRequest, faults_of_real_images: Faults) -> Rung:
    return working(request.param, faults_of_real_images)


def working(rung: Rung, faults: Faults) -> Rung:
    if (fault := faults[rung]) is not None:
        pytest.skip(f"{rung} does not decode here: {fault}")
    return rung


def train(
    split: Split, device: str, rows: slice, dtype: torch.dtype = torch.float32, batch: int = 20, **config: Any
) -> list[Batch]:
    order, loader = Order(len(split), batch, seed=3), LoaderConfig(threads=2, **config)
    with training_batches(
        split, order, AugmentConfig(), STATISTICS, rows, 0, 6, torch.device(device), loader, dtype=dtype
    ) as batches:
        found = list(batches)
    torch.cuda.synchronize()
    return found


def check_alike(found: list[Batch], expected: list[Batch]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.images.is_cuda and one.labels.is_cuda
        np.testing.assert_array_equal(one.ids, two.ids)
        for image, reference_image in zip(one.images.cpu().numpy(), two.images.cpu().numpy(), strict=True):
            assert reference.psnr(image, reference_image) > BOUND


def test_batches_are_the_cpus(varied_jpegs: Dataset, rung: Rung) -> None:
    split, rows = varied_jpegs.split("train"), slice(0, 20)
    expected, found = train(split, "cpu", rows), train(split, "cuda", rows, decode_on=rung)
    check_alike(found, expected)
    if rung == "cpu":
        for one, two in zip(found, expected, strict=True):  # the same uint8, the same arithmetic in float32
            torch.testing.assert_close(one.images.cpu(), two.images, rtol=1e-6, atol=1e-4)


def test_bfloat16_is_the_float32_rounded(varied_jpegs: Dataset, rung: Rung) -> None:
    split = varied_jpegs.split("train")
    exact = train(split, "cuda", slice(0, 20), decode_on=rung)
    rounded = train(split, "cuda", slice(0, 20), torch.bfloat16, decode_on=rung)
    assert all(torch.equal(one.images.bfloat16(), two.images) for one, two in zip(exact, rounded, strict=True))


@pytest.mark.parametrize("load", [0.0, 1.0])
def test_images_do_not_depend_on_the_split_among_ranks(varied_jpegs: Dataset, rung: Rung, load: float) -> None:
    split, config = varied_jpegs.split("train"), {"decode_on": rung, "hw_decoder_load": load}
    whole = train(split, "cuda", slice(0, 20), **config)
    parts = [train(split, "cuda", slice(start, start + 5), **config) for start in range(0, 20, 5)]
    for iteration, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[iteration].images for part in parts]), batch.images)


def test_real_images_do_not_depend_on_their_batch(real_imagenet: Dataset, rung_for_real_images: Rung) -> None:
    """All of them at once and 20 at a time; evaluation also in blocks of growing size."""
    split, rung = real_imagenet.split("train"), rung_for_real_images
    n = len(split)
    rows = [slice(start, min(start + 20, n)) for start in range(0, n, 20)]
    whole = train(split, "cuda", slice(0, n), batch=n, decode_on=rung)
    parts = [train(split, "cuda", part, batch=n, decode_on=rung) for part in rows]
    for iteration, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[iteration].images for part in parts]), batch.images)

    def evaluated(blocks: list[NDArray[np.int64]]) -> torch.Tensor:
        config = LoaderConfig(threads=2, decode_on=rung)
        with evaluation_batches(split, CenterCrop(), STATISTICS, blocks, CUDA, config) as batches:
            return torch.cat([batch.images for batch in batches])

    ids = np.arange(n)
    together = evaluated([ids])
    assert torch.equal(evaluated([ids[part] for part in rows]), together)
    assert torch.equal(evaluated([ids[:1], ids[1:4], ids[4:]]), together)


def test_batches_stay_valid_while_the_loader_goes_on(varied_jpegs: Dataset, rung: Rung) -> None:
    split = varied_jpegs.split("train")
    batches = train(split, "cuda", slice(0, 20), decode_on=rung)
    copies = [batch.images.clone() for batch in batches]
    train(split, "cuda", slice(0, 20), decode_on=rung)
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(batches, copies, strict=True))


def test_a_device_that_is_late_reads_no_overwritten_pixels(
    varied_jpegs: Dataset, rung: Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, original = varied_jpegs.split("train"), finishing.feed_ndarray
    expected = train(split, "cuda", slice(0, 20), decode_on=rung)

    def late(tensor: Any, copy: torch.Tensor, cuda_stream: torch.cuda.Stream) -> torch.Tensor:
        torch.cuda._sleep(10**8)  # cycles: about 50 ms, on the loader's stream
        return original(tensor, copy, cuda_stream=cuda_stream)

    monkeypatch.setattr(finishing, "feed_ndarray", late)
    found = train(split, "cuda", slice(0, 20), decode_on=rung)
    assert all(torch.equal(one.images, two.images) for one, two in zip(found, expected, strict=True))


def test_a_graph_is_recorded_while_the_loader_works(varied_jpegs: Dataset, rung: Rung) -> None:
    """Nothing that the loader's threads and DALI's do may break a recording; nor does the recording change a batch."""
    split, cuda = varied_jpegs.split("train"), torch.device("cuda")
    expected = train(split, "cuda", slice(0, 20), decode_on=rung)
    recorder, numbers = CudaGraphs(cuda), torch.ones(1000, device=cuda)
    recorder.run(lambda: numbers * 2)

    def slowly() -> torch.Tensor:
        result = numbers * 2
        for _ in range(100):
            time.sleep(1e-3)  # batches come in the midst of the recording
            result = result + 1
        return result

    config = LoaderConfig(threads=2, ready=1, decode_on=rung)
    order, found = Order(len(split), 20, seed=3), []
    with training_batches(split, order, AugmentConfig(), STATISTICS, slice(0, 20), 0, 6, cuda, config) as batches:
        for batch in batches:  # its going out of use frees DALI's memory
            found.append(batch.images.clone())
            replay, result = recorder.record(slowly)
            replay()
            assert torch.equal(result, torch.full_like(result, 102))
    assert all(torch.equal(one, two.images) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("view", EVALUATED, ids=lambda view: type(view).__name__)
def test_evaluation_graphs(varied_jpegs: Dataset, rung: Rung, view: View) -> None:
    split = varied_jpegs.split("train")
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    blocks = shape_blocks(shapes, [view.short_side], 8)

    def evaluated(device: torch.device, decode_on: Rung) -> list[NDArray[np.float32]]:
        config = LoaderConfig(threads=2, decode_on=decode_on)
        with evaluation_batches(split, view, STATISTICS, blocks, device, config) as batches:
            return [batch.images.cpu().numpy() for batch in batches]

    for one, two in zip(evaluated(torch.device("cpu"), "cpu"), evaluated(CUDA, rung), strict=True):
        assert reference.psnr(two, one) > BOUND


def test_padded_crops_decoded_and_from_memory(tiny_images: Dataset) -> None:
    split, augment = tiny_images.split("train"), AugmentConfig(kind="pad-crop", crop=32)
    order, statistics = Order(len(split), 16, seed=3), statistics_of_size(32)
    found = []
    for device, megabytes in (("cpu", 0), ("cuda", 0), ("cuda", 1000)):
        config = LoaderConfig(threads=2, in_memory_mb=megabytes)
        with training_batches(
            split, order, augment, statistics, slice(0, 16), 0, 6, torch.device(device), config
        ) as batches:
            found.append([batch.images.cpu() for batch in batches])
    for images in found[1:]:
        for one, two in zip(images, found[0], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-4)


def test_truncated_images_are_damaged_on_every_rung(make_dataset: Callable[..., Dataset], rung: Rung) -> None:
    images = [encode(photograph(number, 300, 400)) for number in range(20)]
    images[4], images[9] = images[4][: len(images[4]) // 3], images[9][: len(images[9]) // 2]
    split = make_dataset(images).split("train")
    expected = train(split, "cpu", slice(0, 20), on_decode_error="substitute")
    assert sum(len(batch.substitutions) for batch in expected) > 0
    found = train(split, "cuda", slice(0, 20), on_decode_error="substitute", decode_on=rung)
    check_alike(found, expected)
    assert [batch.substitutions for batch in found] == [batch.substitutions for batch in expected]
    with pytest.raises(UserError, match="does not decode"):
        train(split, "cuda", slice(0, 20), decode_on=rung)
