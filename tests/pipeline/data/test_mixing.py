"""Mixup and cutmix: draws against scipy's distribution and timm's boxes, pixels against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import Batch, LoaderConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.graphs import Graph, Normalization
from pipeline.data.loader import training_batches
from pipeline.data.mixing import Mixes, MixingConfig, check_pairs, draw_mixes, mix, mix_in_place
from pipeline.data.order import Order, Presentations
from pipeline.data.plans import training_plan
from pipeline.data.producer import DaliProducer
from tests.images import encode, photograph
from tests.pipeline.data.fake_gpu import GpuFinish
from tests.pipeline.data.small_datasets import statistics_of_size

CPU = torch.device("cpu")
SEED, SIDE, BATCH = 7, 64, 16
BOTH = MixingConfig(mixup=0.1, cutmix=1.0)
AUGMENT = AugmentConfig(short_side=(72, 96), crop=SIDE)
STATISTICS = statistics_of_size(SIDE)
CONFIG = LoaderConfig(threads=1)


def presentations(pairs: int, epoch: int = 2) -> Presentations:
    return Presentations(np.full(2 * pairs, epoch), np.arange(2 * pairs))


def drawn(pairs: int, config: MixingConfig = BOTH, side: int = SIDE) -> Mixes:
    return draw_mixes(SEED, presentations(pairs), side, config)


def uniforms(epoch: int, sample: int) -> list[float]:
    """The four draws of a pair whose first row is this presentation, by NumPy's generator."""
    counter = (epoch << 64) + sample - 1  # NumPy adds 1 before it generates
    parts = [(counter >> (64 * place)) & (2**64 - 1) for place in range(4)]
    key = np.array([SEED, 3], np.uint64)
    words = np.random.Philox(key=key, counter=np.array(parts, np.uint64)).random_raw(4)
    return [int(word >> np.uint64(11)) * 2.0**-53 for word in words]


def timms_rand_bbox(side: int, lam: float, cy: int, cx: int) -> tuple[int, int, int, int]:
    """yl, yh, xl, xh of timm's rand_bbox (timm/data/mixup.py, v1.0), by its names, for a given centre and no margin."""
    img_h = img_w = side
    ratio = np.sqrt(1 - lam)
    cut_h, cut_w = int(img_h * ratio), int(img_w * ratio)
    yl = np.clip(cy - cut_h // 2, 0, img_h)
    yh = np.clip(cy + cut_h // 2, 0, img_h)
    xl = np.clip(cx - cut_w // 2, 0, img_w)
    xh = np.clip(cx + cut_w // 2, 0, img_w)
    return int(yl), int(yh), int(xl), int(xh)


@pytest.mark.parametrize("side", [64, 33])
def test_boxes_and_weights_are_those_of_timms_rand_bbox(side: int) -> None:
    """Reference: one pair after the other, with NumPy's Philox, scipy's quantiles and timm's function."""
    from scipy.stats import beta  # type: ignore[import-untyped]

    found, swaps = drawn(40, side=side), 0
    for number in range(40):
        chosen, kept, y, x = uniforms(2, 2 * number)
        if chosen >= 0.5:
            share = beta.ppf(kept, 0.1, 0.1)
            assert found.box[number].tolist() == [0, 0, 0, 0]
            np.testing.assert_allclose([found.share[number], found.weight[number]], share, rtol=1e-5, atol=1e-7)
            continue
        swaps += 1
        # Beta(1, 1) is the uniform distribution
        top, bottom, left, right = timms_rand_bbox(side, kept, int(y * side), int(x * side))
        assert found.box[number].tolist() == [top, left, bottom, right]
        assert found.share[number] == 1
        area = (bottom - top) * (right - left) / side**2
        np.testing.assert_allclose(found.weight[number], 1 - area, rtol=1e-6, atol=1e-7)
    assert 10 < swaps < 30


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    """In the lower half: in the upper one, float32 makes 1 of many shares where alpha is small."""
    from scipy.stats import beta, kstest

    shares = drawn(4000, MixingConfig(mixup=alpha)).share.astype(np.float64)
    lower = shares[shares < 0.5]
    assert abs(len(lower) / len(shares) - 0.5) < 0.03
    assert kstest(lower, lambda share: 2 * beta(alpha, alpha).cdf(share)).pvalue > 0.01


def test_switch_is_the_share_of_pairs_with_cutmix() -> None:
    mixes = drawn(4000, replace(BOTH, switch=0.25))
    assert abs(float((mixes.box[:, 2] > mixes.box[:, 0]).mean()) - 0.25) < 0.03
    assert (drawn(50, MixingConfig(cutmix=1.0, switch=0.25)).share == 1).all(), "cutmix alone is for all pairs"


def test_a_pair_depends_on_its_first_presentation_alone() -> None:
    mixes, shown = drawn(20), presentations(20)
    backwards = np.arange(40).reshape(-1, 2)[::-1].ravel()
    again = draw_mixes(SEED, Presentations(shown.epochs[backwards], shown.ids[backwards]), SIDE, BOTH)
    np.testing.assert_array_equal(again.box[::-1], mixes.box)
    np.testing.assert_array_equal(again.weight[::-1], mixes.weight)
    for other in (
        draw_mixes(SEED + 1, shown, SIDE, BOTH),
        draw_mixes(SEED, presentations(20, 3), SIDE, BOTH),
    ):
        assert (other.weight != mixes.weight).mean() > 0.8


def mixed_by_numpy(images: np.ndarray, mixes: Mixes) -> np.ndarray:
    """float64; one pair after the other."""
    result = images.astype(np.float64)
    for number, (top, left, bottom, right) in enumerate(mixes.box):
        one, two = images[2 * number].astype(np.float64), images[2 * number + 1].astype(np.float64)
        share = np.full((*one.shape[:2], 1), float(mixes.share[number]))
        share[top:bottom, left:right] = 0
        result[2 * number], result[2 * number + 1] = share * one + (1 - share) * two, share * two + (1 - share) * one
    return result


@pytest.mark.parametrize("how", [mix, mix_in_place])
def test_pixels_are_mixed_as_by_numpy_and_swapped_to_the_bit(how: Callable[..., torch.Tensor]) -> None:
    images, mixes = np.random.default_rng(0).normal(size=(24, 20, 20, 3)).astype(np.float32), drawn(12, side=20)
    found = how(torch.tensor(images), torch.from_numpy(mixes.box), torch.from_numpy(mixes.share)).numpy()
    np.testing.assert_allclose(found, mixed_by_numpy(images, mixes), rtol=1e-5, atol=1e-6)
    (swapped,) = np.flatnonzero((mixes.share == 1) & (mixes.weight < 0.7))[:1]
    pair = slice(2 * swapped, 2 * swapped + 2)
    assert np.isin(found[pair], images[pair]).all(), "cutmix moves pixels and computes none"
    weights = [1 - (found[2 * swapped] != images[2 * swapped]).all(axis=-1).mean()]
    np.testing.assert_allclose(weights, mixes.weight[swapped], rtol=1e-6)


@pytest.mark.parametrize("config", [BOTH, MixingConfig(mixup=0.2), MixingConfig(cutmix=1.0)])
def test_the_cpus_way_has_the_bits_of_the_devices(config: MixingConfig) -> None:
    images, mixes = torch.randn(80, 20, 20, 3, generator=torch.Generator().manual_seed(0)), drawn(40, config, side=20)
    box, share = torch.from_numpy(mixes.box), torch.from_numpy(mixes.share)
    expected, found = mix(images, box, share), images.clone()
    assert mix_in_place(found, box, share) is found
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32)) and not torch.equal(found, images)


def train(
    split: Split, rows: slice, start: int = 0, stop: int = 3, mixing: MixingConfig | None = BOTH, **config: object
) -> list[Batch]:
    order, config_of = Order(len(split), BATCH, SEED), replace(CONFIG, **config)  # type: ignore[arg-type]
    with training_batches(
        split, order, AUGMENT, STATISTICS, rows, start, stop, CPU, config_of, mixing=mixing
    ) as batches:
        return list(batches)


def parts_of(batch: Batch) -> list[torch.Tensor]:
    assert batch.mixed is not None
    return [batch.images, batch.labels, *batch.mixed]


def test_batches_are_mixtures_of_the_unmixed_ones(varied_jpegs: Dataset) -> None:
    split, order = varied_jpegs.split("train"), Order(len(varied_jpegs.split("train")), BATCH, SEED)
    plain = train(split, slice(0, BATCH), mixing=None)
    for iteration, (batch, unmixed) in enumerate(zip(train(split, slice(0, BATCH)), plain, strict=True)):
        mixes = draw_mixes(SEED, order.minibatch(iteration), SIDE, BOTH)
        assert batch.mixed is not None and unmixed.mixed is None and torch.equal(batch.labels, unmixed.labels)
        np.testing.assert_allclose(batch.images, mixed_by_numpy(unmixed.images.numpy(), mixes), rtol=1e-5, atol=1e-4)
        partners, weights = batch.mixed
        assert partners.tolist() == unmixed.labels[[row ^ 1 for row in range(BATCH)]].tolist()
        assert weights.dtype == torch.float32 and weights.tolist() == mixes.weight.repeat(2).tolist()


def test_ranks_and_resumed_loaders_get_the_same_bits(varied_jpegs: Dataset) -> None:
    split = varied_jpegs.split("train")
    whole = train(split, slice(0, BATCH))
    for size in (2, 4):
        share = BATCH // size
        ranks = [train(split, slice(rank * share, (rank + 1) * share), 1) for rank in range(size)]
        for number, batch in enumerate(whole[1:]):  # the ranks begin at iteration 1, as a continued run does
            for part, *of_ranks in zip(parts_of(batch), *(parts_of(rank[number]) for rank in ranks), strict=True):
                assert torch.equal(torch.cat(of_ranks), part)


def test_a_gpus_branch_mixes_the_same(varied_jpegs: Dataset, fake_gpu: None) -> None:
    split, normalization = varied_jpegs.split("train"), Normalization.of(STATISTICS, SIDE)
    order = Order(len(split), BATCH, SEED)
    plan = training_plan(split, SEED, AUGMENT, STATISTICS, BATCH, [order.minibatch(0)], mixing=BOTH)
    (expected,) = train(split, slice(0, BATCH), 0, 1)
    for dtype in (torch.float32, torch.bfloat16):
        producer = DaliProducer(
            plan.stream, Graph("crop", SIDE, "gpu", normalization), GpuFinish(normalization, dtype), CONFIG
        )
        producer.thread.start()
        found = producer.ready.get(timeout=60)
        producer.close()
        assert found.batch is not None and found.error is None
        for one, other in zip(parts_of(found.batch), parts_of(expected), strict=True):
            assert torch.equal(one, other.to(one.dtype))  # pixels are mixed before they are rounded


def test_images_kept_in_memory_are_mixed_the_same(tiny_images: Dataset) -> None:
    split = tiny_images.split("train")
    augment, order = AugmentConfig(kind="pad-crop", crop=32), Order(len(split), BATCH, SEED)
    made = []
    for config in (CONFIG, replace(CONFIG, in_memory_mb=0)):
        rows = slice(0, BATCH)
        with training_batches(
            split, order, augment, statistics_of_size(32), rows, 0, 2, CPU, config, mixing=BOTH
        ) as batches:
            made.append(list(batches))
    for kept, decoded in zip(*made, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(parts_of(kept), parts_of(decoded), strict=True))


def test_a_substitute_is_mixed_in_its_place(make_dataset: Callable[..., Dataset]) -> None:
    images = [encode(photograph(number, 90, 120)) for number in range(BATCH)]
    images[4] = b"not an image"
    split = make_dataset(images).split("train")
    (whole,) = train(split, slice(0, BATCH), 0, 1, on_decode_error="substitute")
    halves = [train(split, rows, 0, 1, on_decode_error="substitute")[0] for rows in (slice(0, 8), slice(8, 16))]
    assert 4 not in whole.ids and len(whole.substitutions) == 1
    for part, *of_ranks in zip(parts_of(whole), *map(parts_of, halves), strict=True):
        assert torch.equal(torch.cat(of_ranks), part)
    assert whole.mixed is not None
    assert whole.mixed[0].tolist() == whole.labels[[row ^ 1 for row in range(BATCH)]].tolist()


def test_pairs_over_two_ranks_are_refused() -> None:
    check_pairs(MixingConfig(), 6, 2)
    check_pairs(BOTH, 8, 4)
    with pytest.raises(UserError, match=r"batch 12 gives 4 processes no even number .* use one of \[1, 2, 3, 6\] proc"):
        check_pairs(BOTH, 12, 4)
    with pytest.raises(UserError, match=r"mixing\.mixup is -1"):
        MixingConfig(mixup=-1)
    with pytest.raises(UserError, match=r"mixing\.switch is 1\.5"):
        MixingConfig(switch=1.5)


@pytest.mark.parametrize("rows", [slice(1, 5), slice(0, 7), slice(5, None)])
def test_rows_that_split_a_pair_are_refused(tiny_images: Dataset, rows: slice) -> None:
    with pytest.raises(UserError, match=r"the rows from \d up to \d+ of 16 split a pair: begin and end at even rows"):
        train(tiny_images.split("train"), rows)
