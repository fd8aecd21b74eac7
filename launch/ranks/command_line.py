"""The command line of every launcher: what it takes, and the work that it asks for.

Imports no torch: launch/local.py leaves that to its ranks.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.ranks.work import Evaluation, Training
from launch.site import add_site_option, site_values, with_costs
from pipeline.base.command import UserError, check_printed
from pipeline.base.parsing import CommandParser
from pipeline.run.help import HELP_ALL, Option, options_of, print_short_help

if TYPE_CHECKING:
    import jsonargparse

EVALUATE = "--evaluate"  # separates a launcher's options from those of python -m pipeline.evaluate


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The two command lines of a launcher: to train, and to evaluate.

    training, evaluation: the sentence and the example that open their --help. add_options: adds the launcher's options to
    either. first: those of its options that --help of the training shows before the config's keys. submits: the launcher
    does not wait for its ranks; its `--json` is then about the job, also in an evaluation. spelled: writes words that the
    launcher takes, but its parser does not, as the parser does take them.
    """

    training: tuple[str, str]
    evaluation: tuple[str, str]
    add_options: Callable[[ArgumentParser], None]
    first: tuple[str, ...]
    submits: bool = False
    spelled: Callable[[Sequence[str]], list[str]] = list

    def training_parser(self) -> jsonargparse.ArgumentParser:
        """Takes the config's values, the launcher's options and `--json`."""
        from pipeline.run.options import parser

        training = parser(*self.training, self._own())
        self.add_options(training)
        add_site_option(training)
        training.add_argument("--json", action="store_true", help="end with one line of JSON")
        sentence = "evaluate a model instead, on the same ranks; the options of python -m pipeline.evaluate follow"
        training.add_argument(EVALUATE, type=str, metavar="RUN ...", help=sentence)
        return training

    def answer_help(self) -> None:
        """Print --help of the training and exit, where this process's command line asks for it: before slow imports."""
        words, evaluation = split_arguments(sys.argv[1:])
        if evaluation is None and HELP_ALL not in words:
            print_short_help(*self.training, self._own())

    def _own(self) -> list[Option]:
        own = ArgumentParser(add_help=False)
        self.add_options(own)
        evaluate = Option(
            EVALUATE, "RUN ...", "test a trained net on the same ranks; pipeline.evaluate's options follow"
        )
        return [*options_of(own, self.first), evaluate]

    def evaluation_parser(self) -> CommandParser:
        """Takes what may stand before `--evaluate`."""
        parser = CommandParser(*self.evaluation)
        self.add_options(parser)
        if self.submits:
            add_site_option(parser)
            parser.add_json_option()
        return parser


def read_work(argv: Sequence[str] | None, command_line: CommandLine) -> tuple[Training | Evaluation, Namespace] | None:
    """The work that a launcher's command line asks for, and the launcher's own options. Raises UserError.

    None where `--print-config` was given: the config is printed, and nothing is left to do.
    """
    from pipeline.run.config import to_yaml
    from pipeline.run.options import parse

    words, behind = split_arguments(sys.argv[1:] if argv is None else argv)
    words = command_line.spelled(words)
    if behind is not None:
        args = command_line.evaluation_parser().parse_args(words)
        return _evaluation(behind), args
    config, options = parse(command_line.training_parser(), words)
    config = with_costs(config, site_values(options.site))
    if options.print_config:
        print(to_yaml(config), end="")
        check_printed()
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
    from pipeline.evaluation.foreign import WeightsFile
    from pipeline.run.folder import CONFIG
    from pipeline.run.options import load

    request = read_request(words)
    model = request.model
    if isinstance(model, WeightsFile):
        return Evaluation(request, None, model.data)
    target = model.target
    run = (target if target.is_dir() else target.parent.parent).absolute()
    if not (run / CONFIG).is_file():
        raise UserError(f"{target} is neither a run folder nor a checkpoint in one: give runs/NAME")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.name):  # becomes a job's name and part of a script
        raise UserError(f"the run folder's name '{run.name}' may hold only letters, digits and . _ -: rename it")
    return Evaluation(request, run, model.data or load(run / CONFIG).data)
