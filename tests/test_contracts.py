"""The formulas of docs/contracts.md, run as they stand there, against the code that they describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.augment import AugmentConfig, training_views
from pipeline.data.dataset import Statistics
from pipeline.data.order import Order
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


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_sums(formulas: dict[str, Callable[..., Any]], count: int) -> None:
    leaves = list(torch.randn(count, 1000, generator=torch.Generator().manual_seed(count)))
    expected = formulas["tree_sum"](leaves)
    accumulator, last = TreeAccumulator(), leaves[-1].clone()
    for leaf in leaves[:-1]:
        accumulator.push([leaf.clone()])
    accumulator.add_last(0, last)
    assert torch.equal(last, expected)
