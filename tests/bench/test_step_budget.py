"""bench/step.py keeps to its budget and the device's memory, and says what it left out."""

from __future__ import annotations

import argparse
import math
import time

import pytest
import torch

WAYS = ("one", "two", "three")


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(rounds=2, updates=3, warm_up=1)


def measured(options: argparse.Namespace, ends: float, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, int], int]:
    """(rounds of each way that was measured, updates that all ways made)."""
    from bench import step  # torchvision

    updates: list[str] = []

    def makers(*_: object) -> dict[str, object]:
        return {name: lambda name=name: step.Way(lambda: updates.append(name)) for name in WAYS}

    monkeypatch.setattr(step, "makers", makers)
    ways = step.measure(options, 8, torch.device("cpu"), ends)
    return {name: len(way.rate) for name, way in ways.items()}, len(updates)


def test_without_a_budget_every_way_has_every_round(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, updates = measured(options, math.inf, monkeypatch)
    assert rounds == dict.fromkeys(WAYS, 2)
    assert updates == len(WAYS) * (1 + 2 * 3)


def test_a_spent_budget_leaves_one_way_and_one_round(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds, _ = measured(options, time.monotonic() - 1, monkeypatch)
    assert rounds == {"one": 1}
    said = capsys.readouterr().err
    assert "batch 8, two: left out, no time left (--full)" in said
    assert "batch 8: 1 of 2 rounds, no time left (--full)" in said


def test_ways_that_do_not_fit_are_left_out(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the one whose net does not fit, nor the one whose update does not."""
    from bench import step  # torchvision

    def ends() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    makers = {"net": ends, "update": lambda: step.Way(ends), "small": lambda: step.Way(lambda: None)}
    monkeypatch.setattr(step, "makers", lambda *_: makers)
    assert list(step.measure(options, 8, torch.device("cpu"), math.inf)) == ["small"]
    said = capsys.readouterr().err
    for name in ("net", "update"):
        assert f"batch 8, {name}: does not fit into the device's memory" in said
