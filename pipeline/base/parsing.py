"""How command lines are read and explained. The config's keys that trainings take are read by pipeline/run/options.py."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from pipeline.base.command import UserError, check_known, check_printed, nearest
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.words import meaning, value_meaning

_REFUSED_VALUE = re.compile(r"argument (\S+): invalid (?:\S+ value|choice): '?([^' ]*)'?.*")  # argparse's words


class CommandParser(argparse.ArgumentParser):
    """A parser whose --help opens with usage, one sentence and an example, and whose errors are one sentence (UserError).

    Its subcommands have parsers of this class too: `add_parser` of `add_subparsers` takes the same arguments.
    """

    def __init__(self, sentence: str, example: str, prog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=f"{sentence}\n\nexample:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # A subcommand's parser is given its `prog`, which ends with its name.
        self.command = usage(example) + (f" {prog.split()[-1]}" if prog else "")

    def format_help(self) -> str:
        self.usage = " ".join([self.command, *self._given(), "[options]"]).replace("%", "%%")
        return super().format_help()

    def _given(self) -> Iterator[str]:
        """The words that the command is given, and its required options, as usage shows them."""
        for action in self._actions:
            name = str(action.metavar or action.dest.upper())
            if not action.option_strings:
                name += " ..." if action.nargs in ("+", "*") else ""
                yield f"[{name}]" if action.nargs in ("?", "*") else name
            elif action.required:
                yield f"{action.option_strings[-1]} {name}"

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            options = [option for parser in self._parsers() for option in parser._option_string_actions]
            raise UserError(unknown_option(message, options))
        if (found := _REFUSED_VALUE.fullmatch(message)) and (known := value_meaning(found[1].split("/")[-1], found[2])):
            message = f"{found[1]} does not fit: {known}"
        raise UserError(f"{message}: see --help")

    def _parsers(self) -> Iterator[argparse.ArgumentParser]:
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()

    def add_device_option(self) -> None:
        self.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    def add_json_option(self) -> None:
        self.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")


def answer(options: Callable[[], CommandParser], words: Sequence[str] | None = None) -> None:
    """Print the help, or the error of a command line that cannot be read, and end the program; otherwise do nothing.

    Called before the imports that take seconds; after them, the command reads its command line again. options: makes the
    parser. words: what the parser reads; by default the whole command line.
    """
    try:
        try:
            options().parse_args(words)
        except SystemExit:  # the help was printed
            check_printed()
            raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def usage(example: str) -> str:
    """The command of an example, without its words: `python launch/slurm.py`, `python -m pipeline.evaluate`."""
    words = example.split()
    return " ".join(words[: 3 if words[1:2] == ["-m"] else 2])


def unknown_option(message: str, options: Sequence[str]) -> str:
    """A sentence on the first word of argparse's `unrecognized arguments: ...`: what it means here, else what is spelt alike.

    options: the names of the command's options.
    """
    word, *behind = message.split(": ", 1)[1].split()
    name, _, value = word.partition("=")
    if not value and behind and not behind[0].startswith("-"):
        value = behind[0]
    if sentence := meaning(name, value, options):
        return sentence
    if not word.startswith("-"):
        return f"'{word}' was not expected on the command line: options start with '--' (see --help)"
    return f"{name} is not an option: {nearest(name, [option for option in options if option.startswith('--')])}"


def names_of(kind: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes `A` or `A,B`: the names in it. Raises UserError for one that is not `known`."""

    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        for name in found:
            check_known(kind, name, known)
        return found

    return names


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
