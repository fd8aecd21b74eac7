"""The weights in a run's checkpoints, for tests of runs that start from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.base.layout import checkpoints_in
from pipeline.training.checkpoint import read_verified


def newest(run: Path) -> tuple[int, dict[str, Any], Path]:
    iteration, path = checkpoints_in(run / "checkpoints")[-1]
    return iteration, read_verified(path).state, path


def without_counters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def assert_equal(found: Mapping[str, torch.Tensor] | None, expected: Mapping[str, torch.Tensor]) -> None:
    assert found is not None and found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
