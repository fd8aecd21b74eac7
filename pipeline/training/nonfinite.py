"""The record of updates that were none, because the loss or a gradient was not a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.layout import NONFINITE


def record(run_folder: Path, iteration: int, lr: float, loss: float, samples: Sequence[int]) -> None:
    """Add the update's line, unless it is there already: a run that goes on repeats what came after its checkpoint."""
    line = json.dumps({"iteration": iteration, "lr": lr, "loss": str(loss), "samples": list(samples)})
    with open(run_folder / NONFINITE, "a+") as file:
        file.seek(0)
        if line not in file.read().splitlines():
            file.write(line + "\n")
