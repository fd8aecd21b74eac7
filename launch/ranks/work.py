"""The work that a launcher starts on every rank: a training, an evaluation, or a command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.base.layout import EVALUATION
from pipeline.base.stopping import KEEPING_SCORES, SAVING
from pipeline.base.tables import print_json

if TYPE_CHECKING:  # these import torch
    from pipeline.evaluation.request import EvaluationRequest
    from pipeline.process.watchdog import Hang
    from pipeline.run.config import Config

# The number of a signal that asks to stop by another way, or None while none does (pipeline/process/stop.py).
Asked = Callable[[], int | None] | None


class Work(Protocol):
    """Picklable. Every rank calls it, with torchrun's names in its environment; the result is the exit code."""

    @property
    def name(self) -> str:
        """For people and for the scheduler."""

    @property
    def folder(self) -> Path:
        """Where the ranks' logs and the scheduler's files go: into logs/ and slurm/ below it. Absolute."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Folders that every rank reads. Absolute."""

    @property
    def saving(self) -> str:
        """What it does when it is asked to stop, for people."""

    def __call__(
        self, on_hang: Callable[[Hang], None], on_save: Callable[[], None] = ..., asked: Asked = ..., /
    ) -> int:
        """`on_hang`, `on_save` and `asked` as pipeline.train.train calls them."""


@dataclass(frozen=True)
class Training:
    """Trains the run that `config` describes, or continues it."""

    config: Config

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def folder(self) -> Path:
        return self.config.run_folder.absolute()

    @property
    def inputs(self) -> tuple[Path, ...]:
        return _local_folders(self.config.data, Path.cwd())

    @property
    def device(self) -> str:
        return self.config.device

    def settled(self, device: Literal["cpu", "cuda"]) -> Training:
        """The same training, on `device` where its config leaves the device open (auto)."""
        return Training(replace(self.config, device=device)) if self.device == "auto" else self

    def absolute(self) -> Training:
        """The same training for processes with another working directory."""
        from pipeline.data.storage import location_in
        from pipeline.initial.source import located

        config, here = self.config, Path.cwd()
        init = None if config.init is None else located(config.init, here)
        runs, data = str(here / config.runs), location_in(here, config.data)
        return Training(replace(config, runs=runs, data=data, init=init))

    def check_ranks(self, ranks: int) -> None:
        """Raise UserError where the batch cannot be divided among `ranks` ranks."""
        from pipeline.data.mixing import check_pairs
        from pipeline.training.batchnorm import plan_groups

        plan_groups(self.config.batch, self.config.bn_group, 0, ranks)
        check_pairs(self.config.mixing, self.config.batch, ranks)

    def check_start(self) -> None:
        """Raise UserError where the weights that the run is to start from are not there, or cannot be read."""
        if self.config.init is not None:
            from pipeline.initial.start import check_source

            check_source(self.config)

    def print_summary(self, code: int) -> None:
        """Print the closing line of `--json`. `code`: the exit code."""
        from pipeline.run.summary import summary

        print_json(summary(self.config, code))

    @property
    def saving(self) -> str:
        return SAVING

    def __call__(
        self, on_hang: Callable[[Hang], None], on_save: Callable[[], None] = lambda: None, asked: Asked = None
    ) -> int:
        from pipeline.train import train

        return train(self.config, on_hang, on_save, asked)


@dataclass(frozen=True)
class Evaluation:
    """Scores one trained model.

    `run`: the run folder that holds the model, absolute; None for weights from elsewhere. `data`: the dataset's location.
    """

    request: EvaluationRequest
    run: Path | None
    data: str

    @property
    def name(self) -> str:
        return f"{self.run.name}-evaluation" if self.run else "evaluation"

    @property
    def folder(self) -> Path:
        return self.run / EVALUATION if self.run else self.request.directory / "runs" / EVALUATION

    @property
    def inputs(self) -> tuple[Path, ...]:
        return _local_folders(self.data, self.request.directory)

    @property
    def device(self) -> str:
        return self.request.device

    def settled(self, device: Literal["cpu", "cuda"]) -> Evaluation:
        """The same evaluation, on `device` where the request leaves the device open (auto)."""
        return replace(self, request=replace(self.request, device=device)) if self.device == "auto" else self

    def check_inputs(self) -> None:
        """Raise UserError where there are no sound weights or no dataset, before a job waits in a queue for them."""
        from pipeline.data.storage import open_dataset
        from pipeline.evaluation.foreign import WeightsFile, open_weights
        from pipeline.evaluation.nets import find_checkpoint

        if self.run is not None:
            find_checkpoint(self.run)
        elif isinstance(self.request.model, WeightsFile):
            open_weights(self.request.model)
        open_dataset(self.data)

    @property
    def saving(self) -> str:
        return KEEPING_SCORES

    def __call__(
        self, on_hang: Callable[[Hang], None], on_save: Callable[[], None] = lambda: None, asked: Asked = None
    ) -> int:
        from pipeline.evaluate import evaluate

        return evaluate(self.request, asked)


@dataclass(frozen=True)
class Command:
    """Runs one command, as one task."""

    name: str
    folder: Path
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()

    @property
    def saving(self) -> str:
        return "the command decides"

    def __call__(self, *_: object) -> int:
        return subprocess.run(self.words, check=False).returncode


def _local_folders(data: str, directory: Path) -> tuple[Path, ...]:
    return () if "://" in data else (directory / data,)
