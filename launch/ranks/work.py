"""What a launcher starts on every rank: a training, an evaluation or a command. Also the head of a launcher's command line.

Imports no torch: launch/local.py leaves that to its ranks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.base.command import CommandParser, UserError, print_json

if TYPE_CHECKING:  # these import torch
    import jsonargparse

    from pipeline.evaluation.request import EvaluationRequest
    from pipeline.process.watchdog import Hang
    from pipeline.run.config import Config

EVALUATE = "--evaluate"  # separates a launcher's options from those of python -m pipeline.evaluate


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

    def __call__(self, on_hang: Callable[[Hang], None] = ..., on_save: Callable[[], None] = ..., /) -> int:
        """`on_hang` and `on_save` as pipeline.train.main calls them."""


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

    @property
    def timeout_seconds(self) -> float:
        return self.config.timeout_seconds

    def absolute(self) -> Training:
        """The same training for processes with another working directory."""
        from pipeline.data.storage import location_in

        config, here = self.config, Path.cwd()
        return Training(replace(config, runs=str(here / config.runs), data=location_in(here, config.data)))

    def check_ranks(self, ranks: int) -> None:
        """Raise UserError where the batch cannot be divided among `ranks` ranks."""
        from pipeline.training.batchnorm import plan_groups

        plan_groups(self.config.batch, self.config.bn_group, 0, ranks)

    def print_summary(self, code: int) -> None:
        """Print the closing line of `--json`. `code`: the exit code."""
        from pipeline.run.summary import summary

        print_json(summary(self.config, code))

    def __call__(
        self, on_hang: Callable[[Hang], None] = lambda hang: None, on_save: Callable[[], None] = lambda: None
    ) -> int:
        from pipeline.train import main

        return main(self.config, on_hang, on_save)


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
        return self.run / "evaluation" if self.run else self.request.directory / "runs" / "evaluation"

    @property
    def inputs(self) -> tuple[Path, ...]:
        return _local_folders(self.data, self.request.directory)

    @property
    def device(self) -> str:
        return self.request.device

    @property
    def timeout_seconds(self) -> float:
        from pipeline.run.config import Config

        return Config.timeout_seconds

    def check_inputs(self) -> None:
        """Raise UserError where there is no sound checkpoint or no dataset, before a job waits in a queue for them."""
        from pipeline.data.storage import open_dataset
        from pipeline.evaluation.nets import find_checkpoint

        if self.run is not None:
            find_checkpoint(self.run)
        open_dataset(self.data)

    def __call__(self, *_: object) -> int:
        from pipeline.evaluate import evaluate

        return evaluate(self.request)


@dataclass(frozen=True)
class Command:
    """Runs one command, as one task."""

    name: str
    folder: Path
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()

    def __call__(self, *_: object) -> int:
        return subprocess.run(self.words, check=False).returncode


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The two command lines of a launcher: to train, and to evaluate.

    training, evaluation: the sentence and the example that open their --help. add_options: adds the launcher's options to
    either. submits: the launcher does not wait for its ranks; its `--json` is then about the job, also in an evaluation.
    """

    training: tuple[str, str]
    evaluation: tuple[str, str]
    add_options: Callable[[ArgumentParser], None]
    submits: bool = False

    def training_parser(self) -> jsonargparse.ArgumentParser:
        """Takes the config's values, the launcher's options and `--json`."""
        from pipeline.run.options import parser

        training = parser(*self.training)
        self.add_options(training)
        _add_json_option(training)
        training.add_argument(
            EVALUATE,
            type=str,
            metavar="RUN ...",
            help="evaluate a model instead, on the same ranks; the options of python -m pipeline.evaluate follow",
        )
        return training

    def evaluation_parser(self) -> CommandParser:
        """Takes what may stand before `--evaluate`."""
        parser = CommandParser(*self.evaluation)
        self.add_options(parser)
        if self.submits:
            _add_json_option(parser)
        return parser


def read_work(argv: Sequence[str] | None, command_line: CommandLine) -> tuple[Training | Evaluation, Namespace] | None:
    """The work that a launcher's command line asks for, and the launcher's own options. Raises UserError.

    None where `--print-config` was given: the config is printed, and nothing is left to do.
    """
    from pipeline.run.config import to_yaml
    from pipeline.run.options import parse

    words, behind = split_arguments(sys.argv[1:] if argv is None else argv)
    if behind is not None:
        args = command_line.evaluation_parser().parse_args(words)
        return _evaluation(behind), args
    config, options = parse(command_line.training_parser(), words)
    if options.print_config:
        print(to_yaml(config), end="")
        return None
    return Training(config), options


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """A launcher's own words, and the words behind `--evaluate`; None where it is to train."""
    words = list(argv)
    if EVALUATE not in words:
        return words, None
    at = words.index(EVALUATE)
    return words[:at], words[at + 1 :]


def _evaluation(words: Sequence[str]) -> Evaluation:
    """The evaluation that these words of pipeline.evaluate ask for. Raises UserError."""
    from pipeline.evaluate import read_request
    from pipeline.run.folder import CONFIG
    from pipeline.run.options import load

    request = read_request(words)
    target = request.model
    if not isinstance(target, Path):
        assert request.data is not None, "a weights file names no dataset"
        return Evaluation(request, None, request.data)
    run = (target if target.is_dir() else target.parent.parent).absolute()
    if not (run / CONFIG).is_file():
        raise UserError(f"{target} is neither a run folder nor a checkpoint in one: give runs/NAME")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.name):  # becomes a job's name and part of a script
        raise UserError(f"the run folder's name '{run.name}' may hold only letters, digits and . _ -: rename it")
    return Evaluation(request, run, request.data or load(run / CONFIG).data)


def _add_json_option(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def _local_folders(data: str, directory: Path) -> tuple[Path, ...]:
    return () if "://" in data else (directory / data,)
