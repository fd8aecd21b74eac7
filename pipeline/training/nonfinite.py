"""The log of skipped updates: iterations whose loss or gradient was NaN or infinite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.layout import NONFINITE


def record(run_folder: Path, iteration: int, lr: float, loss: float, samples: Sequence[int]) -> None:
    """Add the line of a skipped update, unless it is there: a continued run repeats the updates after its checkpoint."""
    line = json.dumps({"iteration": iteration, "lr": lr, "loss": str(loss), "samples": list(samples)})
    with open(run_folder / NONFINITE, "a+") as file:
        file.seek(0)
        if line not in file.read().splitlines():
            file.write(line + "\n")
