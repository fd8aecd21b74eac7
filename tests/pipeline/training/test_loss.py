"""The losses, against their formulas in NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training.loss import Criterion, Targets

ROWS, CLASSES = 12, 5
LOGITS = np.random.default_rng(1).normal(size=(ROWS, CLASSES), scale=3)
LABELS, PARTNERS = np.random.default_rng(2).integers(CLASSES, size=(2, ROWS))
WEIGHTS = np.linspace(0, 1, ROWS)  # of float32, as the loader has them
MIXED = Targets(*(torch.from_numpy(one) for one in (LABELS, PARTNERS, WEIGHTS)))
PLAIN = Targets(torch.from_numpy(LABELS))


def target(mixed: bool, smoothing: float = 0.0) -> np.ndarray:
    """The target written out, row by row."""
    result = np.full((ROWS, CLASSES), smoothing / CLASSES)
    for row in range(ROWS):
        weight = WEIGHTS[row] if mixed else 1.0
        result[row, LABELS[row]] += (1 - smoothing) * weight
        result[row, PARTNERS[row]] += (1 - smoothing) * (1 - weight)
    return result


def cross_entropy(goal: np.ndarray) -> float:
    return float(-(goal * (LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True)))).sum())


def binary(goal: np.ndarray) -> float:
    """The sum over rows of the mean over classes."""
    yes = 1 / (1 + np.exp(-LOGITS))
    return float(-(goal * np.log(yes) + (1 - goal) * np.log(1 - yes)).mean(axis=1).sum())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_losses_are_their_formulas(mixed: bool, smoothing: float, threshold: float | None) -> None:
    logits, targets = torch.from_numpy(LOGITS), MIXED if mixed else PLAIN
    crossed = Criterion(smoothing=smoothing)
    np.testing.assert_allclose(crossed(logits, targets), cross_entropy(target(mixed, smoothing)), rtol=1e-12)
    np.testing.assert_allclose(crossed.reported(logits, targets), cross_entropy(target(mixed)), rtol=1e-12)

    def goal(smoothing: float) -> np.ndarray:
        share = target(mixed, smoothing)
        return share if threshold is None else (share > threshold).astype(float)

    yes_or_no = Criterion(kind="binary-cross-entropy", smoothing=smoothing, threshold=threshold)
    np.testing.assert_allclose(yes_or_no(logits, targets), binary(goal(smoothing)), rtol=1e-12)
    np.testing.assert_allclose(yes_or_no.reported(logits, targets), binary(goal(0.0)), rtol=1e-12)


def test_a_threshold_makes_two_labels_of_one_mixture() -> None:
    """At 0.2, a third and two thirds are both a yes; a tenth and nine tenths are one."""
    logits = torch.zeros(2, CLASSES, dtype=torch.float64, requires_grad=True)
    targets = Targets(torch.tensor([0, 0]), torch.tensor([3, 3]), torch.tensor([2 / 3, 0.1]))
    Criterion(kind="binary-cross-entropy", threshold=0.2)(logits, targets).backward()
    # The gradient of a class's binary cross-entropy is sigmoid(0) - target, over the number of classes.
    expected = (0.5 - np.array([[1, 0, 0, 1, 0], [0, 0, 0, 1, 0]])) / CLASSES
    np.testing.assert_allclose(logits.grad, expected)


def test_the_dominant_class_decides_an_error() -> None:
    weights: Any = torch.tensor([0.7, 0.3, 0.5])
    targets = Targets(torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), weights)
    assert targets.dominant().tolist() == [0, 1, 0] and PLAIN.dominant() is PLAIN.labels
