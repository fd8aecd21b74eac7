"""RandAugment's draws: timm's rand-mM-mstdD-nN-pP-inc1, as data."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.draws import Draws
from pipeline.data.rand_augment import NO_OPERATION, OPERATIONS, RandAugmentConfig, draw_operations

COUNT = 30_000


def drawn(config: RandAugmentConfig, count: int = COUNT) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    numbers = np.arange(count)
    return draw_operations(Draws(5, numbers // 7, numbers), config)


def test_operations_are_uniform_and_as_frequent_as_configured() -> None:
    from scipy.stats import chisquare

    operations, _ = drawn(RandAugmentConfig(operations=3, probability=0.4))
    assert operations.shape == (COUNT, 3)
    for place in operations.T:
        counts = np.bincount(place - NO_OPERATION, minlength=1 + len(OPERATIONS))
        expected = np.array([0.6, *[0.4 / len(OPERATIONS)] * len(OPERATIONS)]) * COUNT
        assert chisquare(counts, expected).pvalue > 1e-3


def test_magnitudes_are_those_of_timm() -> None:
    """timm: random.gauss(magnitude, deviation), cut off at 0 and 10; each direction half of the time."""
    from scipy.stats import ks_2samp

    for magnitude, deviation in ((6.0, 0.5), (9.0, 2.0), (1.0, 1.0)):
        _, magnitudes = drawn(RandAugmentConfig(operations=2, magnitude=magnitude, deviation=deviation))
        timms = np.clip(np.random.default_rng(0).normal(magnitude, deviation, COUNT), 0, 10)
        for place in magnitudes.T:
            assert ks_2samp(np.abs(place), timms).pvalue > 1e-3
            assert abs((place[place != 0] < 0).mean() - 0.5) < 0.015
    _, steady = drawn(RandAugmentConfig(operations=1, magnitude=7, deviation=0), 100)
    assert set(np.abs(steady).ravel()) == {7.0}


def test_the_draws_are_independent_of_one_another() -> None:
    operations, magnitudes = drawn(RandAugmentConfig(operations=2, probability=0.5))
    draws = np.column_stack([operations, operations == NO_OPERATION, np.abs(magnitudes), np.sign(magnitudes)])
    off = np.abs(np.corrcoef(draws.T) - np.eye(8))
    off[[0, 1, 2, 3], [2, 3, 0, 1]] = 0  # an operation and whether it is one
    assert off.max() < 0.03


def test_more_operations_leave_the_first_ones_as_they_are() -> None:
    two, five = (drawn(RandAugmentConfig(operations=count), 500) for count in (2, 5))
    np.testing.assert_array_equal(five[0][:, :2], two[0])
    np.testing.assert_array_equal(five[1][:, :2], two[1])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"operations": -1}, "augment.rand_augment.operations"),
        ({"operations": 200_000}, r"augment.rand_augment.operations is 200000: it must lie in \[0, 16\]"),
        ({"magnitude": 11}, "augment.rand_augment.magnitude is 11: it must lie in"),
        ({"magnitude": float("nan")}, "augment.rand_augment.magnitude"),
        ({"deviation": -0.5}, "augment.rand_augment.deviation"),
        ({"probability": 2}, "augment.rand_augment.probability"),
    ],
)
def test_bounds_that_cannot_work_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        RandAugmentConfig(**values)  # type: ignore[arg-type]
