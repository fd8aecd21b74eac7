"""The loader on an NVIDIA GPU against the loader on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import pillow_reference as reference
from pipeline.data.augment import AugmentConfig, TenCrop, WholeImage, shape_blocks
from pipeline.data.dataset import Dataset
from pipeline.data.loader import Batch, LoaderConfig, evaluation_batches, training_batches
from pipeline.data.order import Order
from tests.pipeline.data.small_datasets import statistics_of_size

pytestmark = pytest.mark.gpu
STATISTICS = statistics_of_size(224)
# nvJPEG's inverse DCT and chroma interpolation are not libjpeg-turbo's to the bit.
BOUND = 35.0


def train(dataset: Dataset, device: str, rows: slice, dtype: torch.dtype = torch.float32, **config: str) -> list[Batch]:
    split = dataset.split("train")
    order, loader = Order(len(split), 20, seed=3), LoaderConfig(threads=2, **config)  # type: ignore[arg-type]
    with training_batches(
        split, order, AugmentConfig(), STATISTICS, rows, 0, 6, torch.device(device), loader, dtype=dtype
    ) as batches:
        found = list(batches)
    torch.cuda.synchronize()
    return found


def test_decoding_on_either_device(varied_jpegs: Dataset) -> None:
    expected = train(varied_jpegs, "cpu", slice(0, 20))
    sent = train(varied_jpegs, "cuda", slice(0, 20), decode_on="cpu")
    decoded = train(varied_jpegs, "cuda", slice(0, 20))
    for one, two, three in zip(expected, sent, decoded, strict=True):
        assert two.images.is_cuda and three.images.is_cuda and two.labels.is_cuda
        assert torch.equal(two.images.cpu(), one.images)  # the same uint8, the same arithmetic
        for row in range(20):
            assert reference.psnr(three.images[row].cpu().numpy(), one.images[row].numpy()) > BOUND
        np.testing.assert_array_equal(one.ids, three.ids)


def test_bfloat16_is_the_float32_rounded(varied_jpegs: Dataset) -> None:
    exact = train(varied_jpegs, "cuda", slice(0, 20), decode_on="cpu")
    rounded = train(varied_jpegs, "cuda", slice(0, 20), torch.bfloat16, decode_on="cpu")
    assert all(torch.equal(one.images.bfloat16(), two.images) for one, two in zip(exact, rounded, strict=True))


def test_images_do_not_depend_on_the_split_among_ranks(varied_jpegs: Dataset) -> None:
    whole = train(varied_jpegs, "cuda", slice(0, 20))
    parts = [train(varied_jpegs, "cuda", slice(start, start + 5)) for start in range(0, 20, 5)]
    for iteration, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[iteration].images for part in parts]), batch.images)


def test_batches_stay_valid_while_the_loader_goes_on(varied_jpegs: Dataset) -> None:
    batches = train(varied_jpegs, "cuda", slice(0, 20))
    copies = [batch.images.clone() for batch in batches]
    train(varied_jpegs, "cuda", slice(0, 20))
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(batches, copies, strict=True))


def test_evaluation_graphs(varied_jpegs: Dataset) -> None:
    split, config = varied_jpegs.split("train"), LoaderConfig(threads=2)
    shapes = np.stack([split.samples["height"], split.samples["width"]], axis=1).astype(np.int64)
    for view in (TenCrop(), WholeImage(short_side=224)):
        blocks = shape_blocks(shapes, [view.short_side], 8)
        images = []
        for device in ("cpu", "cuda"):
            with evaluation_batches(split, view, STATISTICS, blocks, torch.device(device), config) as batches:
                images.append([batch.images.cpu().numpy() for batch in batches])
        assert all(reference.psnr(two, one) > BOUND for one, two in zip(*images, strict=True))
