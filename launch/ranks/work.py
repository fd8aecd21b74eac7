"""What a door starts on every rank: the training of a config, or the evaluation of a net; picklable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, EVALUATION

if TYPE_CHECKING:  # its import of torch is the ranks' business
    from pipeline.process.watchdog import Hang
    from pipeline.run.config import Config

EVALUATE = "--evaluate"  # the words after it are those of python -m pipeline.evaluate
EVALUATE_HELP = "test a net instead, on the same ranks; what follows are the options of python -m pipeline.evaluate"


class Work(Protocol):
    """Called by every rank with torchrun's names in its environment; its result is the exit code."""

    @property
    def name(self) -> str:
        """For people and for the scheduler."""

    @property
    def folder(self) -> Path:
        """Where the ranks' logs and the scheduler's files go: logs/ and slurm/ below it. Absolute."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Folders that every rank reads. Absolute."""

    def __call__(self, on_hang: Callable[[Hang], None] = ..., on_save: Callable[[], None] = ..., /) -> int:
        """`on_hang` and `on_save` as pipeline.train.train calls them."""


@dataclass(frozen=True)
class Training:
    """Trains the run that `config` describes, or goes on with it."""

    config: Config

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def folder(self) -> Path:
        return self.config.run_folder.absolute()

    @property
    def inputs(self) -> tuple[Path, ...]:
        return _local(self.config.data)

    def __call__(
        self, on_hang: Callable[[Hang], None] = lambda hang: None, on_save: Callable[[], None] = lambda: None
    ) -> int:
        from pipeline.train import train

        return train(self.config, on_hang, on_save)


@dataclass(frozen=True)
class Evaluation:
    """`python -m pipeline.evaluate ARGUMENTS` in `directory`, where the relative paths among them begin.

    `run`: the run folder whose net is tested, None for weights from elsewhere. `data`: the dataset's place.
    """

    arguments: tuple[str, ...]
    directory: Path
    run: Path | None
    data: str

    @property
    def name(self) -> str:
        return f"{self.run.name}-evaluation" if self.run else "evaluation"

    @property
    def folder(self) -> Path:
        return self.run / EVALUATION if self.run else self.directory / "runs" / EVALUATION

    @property
    def inputs(self) -> tuple[Path, ...]:
        return tuple(self.directory / one for one in _local(self.data))

    def __call__(self, *_: object) -> int:
        from pipeline.evaluate import main

        os.chdir(self.directory)
        return main(self.arguments)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """A door's command line: its own words, and those for pipeline.evaluate where it is to evaluate."""
    words = list(argv)
    if EVALUATE not in words:
        return words, None
    at = words.index(EVALUATE)
    return words[:at], words[at + 1 :]


def evaluation(arguments: Sequence[str]) -> Evaluation:
    """The evaluation that these words of pipeline.evaluate ask for. Raises UserError for words that do not fit."""
    from pipeline.evaluate import check, options
    from pipeline.evaluation.options import protocol_names
    from pipeline.run.options import load

    own = options().parse_args(arguments)
    check(own, protocol_names(own.protocol or ["center"]))
    run, data = None, str(own.data)
    if own.target is not None:
        run = (own.target if own.target.is_dir() else own.target.parent.parent).absolute()
        if not (run / CONFIG).is_file():
            raise UserError(f"{own.target} is neither a run folder nor a checkpoint in one: give runs/NAME")
        data = str(own.data or load(run / CONFIG).data)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.name):  # becomes a job's name and part of a script
            raise UserError(f"the run folder's name '{run.name}' may hold only letters, digits and . _ -: rename it")
    return Evaluation(tuple(arguments), Path.cwd(), run, data)


def check_readable(work: Evaluation) -> None:
    """Raise UserError where there is no sound checkpoint or no dataset yet: before a job waits in a queue for them."""
    from pipeline.data.storage import open_dataset
    from pipeline.evaluation.nets import find_checkpoint

    if work.run is not None:
        find_checkpoint(work.run)
    open_dataset(work.data)


def _local(data: str) -> tuple[Path, ...]:
    return () if "://" in data else (Path(data).absolute(),)
