"""Starting the launchers as a user does, and reading what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers import ROOT
from tests.patience import limit

TINY = """
arch: resnet8
data: {data}
iterations: 12
batch: 16
recompute_bn_images: 32
bn_group: 4
threads: 1
augment: {{short_side: [33, 38], crop: 32}}
schedule: {{kind: steps, steps: [8]}}
evaluation: {{every: 12, short_side: 36}}
checkpoint: {{every: 4}}
loader: {{threads: 1}}
tracking: {{log_every: 4, mlflow: false}}
"""


def script(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / name)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what a surrounding job may have left in it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    surroundings = ("SLURM_", "PIPELINE_")
    kept = {
        name: value for name, value in os.environ.items() if name not in names and not name.startswith(surroundings)
    }
    return {**kept, "OMP_NUM_THREADS": "1", **(extra or {})}


def finish(
    command: Sequence[str], folder: Path, timeout: float = 250, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` to its end. timeout: seconds on a quiet machine (tests/patience.py)."""
    return subprocess.run(
        command, cwd=folder, env=environment(extra), capture_output=True, text=True, timeout=limit(timeout), check=False
    )


def final_checkpoint(run_folder: Path) -> str:
    """Name of the newest checkpoint: the iteration, and a digest of every byte of the training's state."""
    return max(path.name for path in (run_folder / "checkpoints").glob("*.pt"))


def launcher_of(run_folder: Path) -> tuple[str, int]:
    """The launcher and the world size of the run's latest attempt."""
    attempt = json.loads((run_folder / "run.json").read_text())["attempts"][-1]
    return attempt["launcher"], attempt["world_size"]
