"""The formulas of docs/contracts.md, run as they stand there, against the code that they describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Statistics
from pipeline.data.erasing import EraseConfig
from pipeline.data.mixing import MixingConfig, draw_mixes
from pipeline.data.order import Order, Presentations
from pipeline.data.rand_augment import RandAugmentConfig
from pipeline.training.tree import TreeAccumulator
from tests.helpers import ROOT
from tests.pages import read

SEEDS = (0, 7, 2**64 - 1)


@pytest.fixture(scope="module")
def formulas() -> dict[str, Callable[..., Any]]:
    """The functions that the page defines, by name."""
    names: dict[str, Any] = {}
    for language, block in read(ROOT / "docs" / "contracts.md").blocks:
        assert language == "python", "the page holds formulas only"
        exec(block, names)
    return names


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order(formulas: dict[str, Callable[..., Any]], seed: int) -> None:
    order = Order(samples=10, batch=4, seed=seed)
    for iteration in (0, 2, 5, 1000):  # mini-batch 2 holds the end of one epoch and the start of the next
        shown = order.minibatch(iteration)
        rows = list(zip(shown.epochs.tolist(), shown.ids.tolist(), strict=True))
        assert formulas["minibatch"](seed, 10, 4, iteration) == rows


@pytest.mark.parametrize("seed", SEEDS)
def test_the_views(formulas: dict[str, Callable[..., Any]], seed: int) -> None:
    config = AugmentConfig(short_side=(40, 75), crop=36)
    statistics = Statistics(
        mean_image=np.zeros((36, 36, 3), np.float32),
        eigenvalues=np.array([0.2, 0.02, 0.005]),
        eigenvectors=np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0],
    )
    presentations = [(0, 0, 50, 81), (0, 1, 333, 44), (3, 0, 60, 60), (119, 1_281_166, 375, 500)]
    epochs, ids, heights, widths = np.array(presentations).T
    views = training_views(seed, epochs, ids, heights, widths, config, statistics)
    for row, (epoch, sample, height, width) in enumerate(presentations):
        resized, corner, mirrored = formulas["geometry"](seed, epoch, sample, height, width, 40, 75, 36)
        assert resized == views.resized[row].tolist()
        assert list(corner) == views.crop_start[row].tolist()
        assert mirrored == views.mirror[row]
        shift = formulas["colour"](seed, epoch, sample, 0.1, statistics.eigenvalues, statistics.eigenvectors)
        np.testing.assert_allclose(views.colour[row], shift, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_views_beside_the_paper(formulas: dict[str, Callable[..., Any]], seed: int) -> None:
    """Many presentations, so that every branch is taken: 30 x 400 pixels rarely hold a box of the drawn area and ratio."""
    rand, erase = RandAugmentConfig(operations=2, probability=0.6), EraseConfig(probability=0.5, area=(0.3, 0.9))
    config = AugmentConfig(kind="area-crop", crop=36, rand_augment=rand, erase=erase)
    statistics = Statistics(
        mean_image=np.zeros((36, 36, 3), np.float32), eigenvalues=np.ones(3), eigenvectors=np.eye(3)
    )
    epochs, ids = np.arange(60) % 4, np.arange(60) * 21_001
    heights, widths = np.array([375, 30, 400, 1] * 15), np.array([500, 400, 30, 200] * 15)
    views = training_views(seed, epochs, ids, heights, widths, config, statistics)
    sizes = np.rint(views.roi_end - views.roi_start).astype(int)
    for row, shown in enumerate(zip(epochs.tolist(), ids.tolist(), strict=True)):
        box = formulas["area_box"](seed, *shown, int(heights[row]), int(widths[row]), config.area, config.ratio)
        assert list(box) == [*views.crop_start[row], *sizes[row]]
        erased = formulas["erased_box"](seed, *shown, 36, 0.5, erase.area, erase.ratio)
        assert list(erased) == views.erased[row].tolist()
        for k in (0, 1):
            operation, magnitude = formulas["rand_augment"](seed, *shown, k, rand.magnitude, rand.deviation, 0.6)
            assert operation == views.operations[row, k]
            assert magnitude == pytest.approx(views.magnitudes[row, k], rel=1e-12)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.7), (0.2, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_images(formulas: dict[str, Callable[..., Any]], seed: int, mixup: float, cutmix: float) -> None:
    config = MixingConfig(mixup=mixup, cutmix=cutmix, switch=0.4)
    epochs, ids = np.repeat([0, 3, 119], 20), np.arange(60) * 20_011
    drawn = draw_mixes(seed, Presentations(epochs, ids), 36, config)
    for number in range(30):
        shown = int(epochs[2 * number]), int(ids[2 * number])
        box, weight = formulas["mixed"](seed, *shown, 36, config.mixup, config.cutmix, config.switch)
        assert drawn.box[number].tolist() == list(box)
        np.testing.assert_allclose(drawn.weight[number], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_sums(formulas: dict[str, Callable[..., Any]], count: int) -> None:
    leaves = list(torch.randn(count, 1000, generator=torch.Generator().manual_seed(count)))
    expected = formulas["tree_sum"](leaves)
    accumulator, last = TreeAccumulator(), leaves[-1].clone()
    for leaf in leaves[:-1]:
        accumulator.push([leaf.clone()])
    accumulator.add_last(0, last)
    assert torch.equal(last, expected)
