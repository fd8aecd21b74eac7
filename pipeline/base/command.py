"""The conventions that every command keeps: one-sentence errors, exit codes, progress, tables, JSON.

Progress and messages go to standard error; the closing table and the `--json` line go to standard output.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, Self

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table
from rich.text import Text

from pipeline.base import leaving
from pipeline.base.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from pipeline.base.starting import imports_are_over
from pipeline.base.stopping import going_on
from pipeline.base.words import meaning, value_meaning

LOG_INTERVAL_SECONDS = 15.0
# What a command says after Ctrl-C: most keep nothing of their work, some go on with what is done.
BEGINS_ANEW = "interrupted before the end: the same command begins anew"
KEEPS = "interrupted: what is done is kept"
_REFUSED_VALUE = re.compile(r"argument (\S+): invalid (?:\S+ value|choice): '?([^' ]*)'?.*")  # argparse's words
_UNLIMITED = Console(width=10_000).options


class UserError(Exception):
    """A mistake that the user can mend: one sentence says what is wrong, where, and what to do. Exit code 2."""


def check_at_least(least: int, section: object, *names: str, prefix: str = "") -> None:
    """Raise UserError where one of these values of a config section is below `least`; None passes.

    prefix: the section's name and a dot, as users type the key.
    """
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} is {value}: it must be at least {least}")


def run(main: Callable[[], int | None], interrupted: str = BEGINS_ANEW) -> NoReturn:
    """Call `main` as a command. The exit code is its result (None: 0), or that of the error that it raises.

    interrupted: what is true after Ctrl-C. The command that goes on is added where some work was kept.
    """
    try:
        imports_are_over()
        code = main() or 0
    except KeyboardInterrupt:
        print(going_on(interrupted) if interrupted == KEEPS else interrupted, file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        if sentence := describe_user_error(error):
            print(f"error: {sentence}", file=sys.stderr)
            code = EXIT_USER_ERROR
        elif leaving.cleanup_is_skipped():
            traceback.print_exc()  # as Python does
            code = EXIT_FAILED
        else:
            raise
    leaving.leave(code)


def answer(options: Callable[[], CommandParser], words: Sequence[str] | None = None) -> None:
    """End the program here if its command line asks for --help or cannot be read. It is read again after the slow imports.

    options: makes the parser. words: of the command line, where the parser does not take all.
    """
    try:
        options().parse_args(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def describe_user_error(error: Exception) -> str | None:
    """The sentence for an error that the user can mend; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    return describe_os_error(error) if isinstance(error, OSError) else None


def describe_os_error(error: OSError) -> str | None:
    """The sentence for an operating-system error that the user can mend (a full disk ...); None for any other error."""
    remedies = {
        errno.ENOSPC: "the disk is full: free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and start the same command again",
        errno.EROFS: "the file system is read-only: choose a folder that can be written",
        errno.EACCES: "permission denied: choose a folder that this user can read and write",
    }
    if error.errno not in remedies:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return place + remedies[error.errno]


def nearest(name: str, valid: Iterable[str]) -> str:
    """A clause that offers the valid names nearest to a misspelt one: `did you mean 'a' or 'b'?`, or all of them."""
    names = sorted(valid)
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return "did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return "valid: " + ", ".join(names)


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


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


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

    def add_json_option(self) -> None:
        self.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")


class _Bar(RichProgress):
    """A progress bar with a line of figures below it: beside it they would not fit into 80 columns."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class Progress:
    """Progress of long work: a bar on a terminal; in a log file a line every 15 seconds and one at the end.

    Use as a context manager; `advance(n, loss="2.31")` counts n units and shows the figures beside the bar.
    """

    def __init__(self, total: int, description: str, unit: str, *, start: int = 0, enabled: bool = True) -> None:
        self.total, self.description, self.unit, self.done, self.start = total, description, unit, start, start
        self.enabled = enabled
        self.figures: dict[str, str] = {}
        self.started = self.last_line = time.monotonic()
        self.bar: _Bar | None = None
        console = Console(stderr=True)
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bar = _Bar(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(description, total=total, completed=start, rate="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.enabled and kind is None:
            self._line()

    def advance(self, n: int = 1, /, **figures: str) -> None:
        self.done += n
        self.figures.update(figures)
        if self.bar:
            self.bar.figures = "  ".join(self._figures())
            self.bar.update(self.task, completed=self.done, rate=self._rate())
        elif self.enabled and time.monotonic() - self.last_line >= LOG_INTERVAL_SECONDS:
            self._line()

    def _figures(self) -> list[str]:
        return [f"{key} {value}" for key, value in self.figures.items()]

    def _per_second(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self.started, 1e-9)

    def _rate(self) -> str:
        return f"{self._per_second():,.1f} {self.unit}/s"

    def _line(self) -> None:
        self.last_line = time.monotonic()
        rate = self._per_second()
        left = [f"{(self.total - self.done) / rate:,.0f} s left"] if rate > 0 and self.done < self.total else []
        text = "  ".join([f"{self.done:,} of {self.total:,}", self._rate(), *self._figures(), *left])
        print(f"{self.description}: {text}", file=sys.stderr, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people on standard output; the first column is aligned left, the others right."""
    console, cells = Console(), [[str(cell) for cell in row] for row in rows]

    def table(titles: Sequence[str]) -> Table:
        headers = [
            Column(text, justify="right" if index else "left", no_wrap=True) for index, text in enumerate(titles)
        ]
        result = Table(*headers, box=box.SIMPLE_HEAD)
        for row in cells:
            result.add_row(*row)
        return result

    printed = table(columns)
    if console.is_terminal and console.measure(printed, options=_UNLIMITED).maximum > console.width:
        printed = table([column.replace(" ", "\n") for column in columns])
    # A pipe has no width, and a row that is too wide for a terminal is better wrapped than cut.
    width = max(console.width, console.measure(printed, options=_UNLIMITED).maximum)
    console.print(Text(title, style="bold"), soft_wrap=True)  # a title of a Table breaks where the table ends
    Console(width=width, force_terminal=console.is_terminal).print(printed)


def print_json(figures: dict[str, Any]) -> None:
    """Print one JSON object as the last line of standard output (`--json`)."""
    print(json.dumps(figures, sort_keys=True), flush=True)
