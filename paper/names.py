"""The names that users type for experiments and launchers. Imports nothing that takes seconds."""

from __future__ import annotations

from typing import Literal

from pipeline.base.checkout import configs

Launcher = Literal["local", "slurm", "ray"]
FOLDER = "experiments"  # of configs/


def names() -> list[str]:
    """The experiments that come with the code."""
    return sorted(path.stem for path in (configs() / FOLDER).glob("*.yaml"))
