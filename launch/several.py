"""Several trainings at once: one job per net, and for an ensemble the evaluation that waits for them all."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from pipeline.config import Config

# The paper's ensemble: "six models of different depth (only with two 152-layer ones)"; the other four are not named there.
ENSEMBLE = (
    ("resnet34", 0),
    ("resnet50", 0),
    ("resnet101", 0),
    ("resnet101", 1),
    ("resnet152", 0),
    ("resnet152", 1),
)
PROTOCOL = "ten-crop"


def members(config: Config, archs: str | None, ensemble: bool) -> list[Config]:
    """The configs to train: `config` alone, or one for each arch of `a,b,c`, or the ensemble's six."""
    if archs:
        nets = [(arch.strip(), config.seed) for arch in archs.split(",") if arch.strip()]
    elif ensemble:
        nets = [(arch, config.seed + shift) for arch, shift in ENSEMBLE]
    else:
        return [config]
    named = [(arch, seed, f"{config.name}-{arch}-seed{seed}" if config.name else None) for arch, seed in nets]
    return [replace(config, arch=arch, seed=seed, name=name) for arch, seed, name in named]


@dataclass(frozen=True)
class EvaluateEnsemble:
    """Scores every run by 10-crop, then their average; what submitit ships once all of them are trained."""

    runs: tuple[str, ...]
    runs_folder: str

    def __call__(self) -> None:
        for run in self.runs:
            _command("pipeline.evaluate", run, "--protocol", PROTOCOL)
        _command("pipeline.ensemble", *self.runs, "--protocol", PROTOCOL, "--runs", self.runs_folder)


def _command(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


@dataclass(frozen=True)
class Command:
    """Runs one command; what submitit ships for the tests that follow a training."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        subprocess.run(self.words, check=True)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at the time limit: the same again, evaluations go on where they stopped."""
        return DelayedSubmission(self)


def folder_of_evaluation(config: Config) -> Path:
    return (Path(config.runs) / f"{config.name or 'ensemble'}-evaluation" / "slurm").absolute()
