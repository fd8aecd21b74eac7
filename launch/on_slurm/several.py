"""Several trainings at once: one job per net, and for an ensemble the evaluation that waits for them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from launch.ranks.work import Training
from pipeline.run.config import Config, check

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
    """The configs to train: `config` alone, or one for each arch of `a,b,c`, or the six of the paper's ensemble.

    Raises UserError for a member that cannot be, such as a net that does not exist.
    """
    if archs:
        nets = [(arch.strip(), config.seed) for arch in archs.split(",") if arch.strip()]
    elif ensemble:
        nets = [(arch, config.seed + shift) for arch, shift in ENSEMBLE]
    else:
        return [config]
    named = [(arch, seed, f"{config.name}-{arch}-seed{seed}" if config.name else None) for arch, seed in nets]
    made = [replace(config, arch=arch, seed=seed, name=name) for arch, seed, name in named]
    for one in made:  # their names become part of a shell script, as that of `config` does
        check(one)
    return made


@dataclass(frozen=True)
class EvaluateEnsemble:
    """Scores every run by 10-crop, then their average, once all of them are trained: launch.ranks.work.Work for one task."""

    name: str
    folder: Path
    inputs: tuple[Path, ...]
    runs: tuple[Path, ...]

    @classmethod
    def of(cls, config: Config, trained: Sequence[Config]) -> Self:
        """For the nets `trained` that `config` was turned into."""
        works = [Training(one) for one in trained]
        name = f"{config.name or 'ensemble'}-evaluation"
        return cls(name, (Path(config.runs) / name).absolute(), works[0].inputs, tuple(one.folder for one in works))

    def __call__(self, *_: object) -> int:
        """The first exit code that is not 0; what is scored already is not scored again."""
        runs = [str(run) for run in self.runs]
        for run in runs:
            if code := _command("pipeline.evaluate", run, "--protocol", PROTOCOL):
                return code
        folder, name = str(self.folder.parent), self.name.removesuffix("-evaluation")
        return _command("pipeline.ensemble", *runs, "--protocol", PROTOCOL, "--runs", folder, "--name", name)


@dataclass(frozen=True)
class Command:
    """Runs one command; launch.ranks.work.Work for the tests that follow a training."""

    name: str
    folder: Path
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()

    def __call__(self, *_: object) -> int:
        return subprocess.run(self.words, check=False).returncode


def _command(module: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
