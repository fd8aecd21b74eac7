"""The project's commands and their parsers, asked of the commands themselves: for the tests of docs and of options."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NoReturn
from unittest.mock import patch

import jsonargparse

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.run import options
from tests.helpers import ROOT

PACKAGES = ("pipeline", "launch", "data_prep", "paper", "bench", "tests")
# Started by other modules, not by people.
INTERNAL = (
    "pipeline.data.probing",
    "pipeline.tracking.browser",
    "pipeline.tracking.feeder",
    "pipeline.meter.sampler",
    "launch.ranks.worker",
    "launch.on_slurm.ending",
    "launch.on_slurm.fence",
    "bench.gpu.child",
)


@cache
def commands() -> dict[str, str]:
    """Each module that is started by people, and how: {"launch.slurm": "python launch/slurm.py"}."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT)
            module = ".".join(path.with_suffix("").parts)
            if module not in INTERNAL and _is_program(file.read_text()):
                as_module = package in ("pipeline", "tests") or module.endswith(".__main__")
                found[module] = f"python -m {module.removesuffix('.__main__')}" if as_module else f"python {path}"
    return found


def _is_program(text: str) -> bool:
    return "__main__" in text and any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in ast.parse(text).body
    )


def find(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """(module, its words) of `-m pipeline.train WORDS` or `launch/slurm.py WORDS`; None for what is no command of ours."""
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0].removeprefix("./"), words[1:])
    module = name if words[0] == "-m" else name.removesuffix(".py").replace("/", ".")
    for one in (module, f"{module}.__main__"):
        if one in commands():
            return one, list(rest)
    return None


def has_parser(module: str) -> bool:
    """Whether a command reads its words by argparse: some programs of tests/ do not."""
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    return (
        re.search(
            r"\b(ArgumentParser|CommandParser|parser|read_work|\w+_options)\(|^from paper\.\w+ import main",
            text,
            re.MULTILINE,
        )
        is not None
    )


class _Taken(BaseException):
    """Carries the parser out of a command."""

    def __init__(self, parser: ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@cache
def parser_of(module: str, *words: str) -> ArgumentParser:
    """The parser that the command builds when it is started with these words. It is stopped before it parses."""
    entry = _entry(module)

    def take(parser: ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _Taken(parser)

    with ExitStack() as patched:
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            for name in ("parse_args", "parse_known_args"):
                patched.enter_context(patch.object(kind, name, take))
        patched.enter_context(patch.object(sys, "argv", [module, *words]))
        try:
            entry()
        except _Taken as taken:
            return taken.parser
    raise AssertionError(f"{module} did not ask a parser to read its words")


def _entry(module: str) -> Callable[[], object]:
    """The function that `python -m MODULE` calls: `run`, unless that is the caller of commands, else `main`."""
    loaded = importlib.import_module(module)
    own = getattr(loaded, "run", command.run)
    entry: Callable[[], object] = loaded.main if own is command.run else own
    return entry


def parse(parser: ArgumentParser, words: Sequence[str], *, complete: bool = True) -> Any:
    """Read words as the command would; `complete` False lets required ones be missing. Raises UserError."""
    if isinstance(parser, jsonargparse.ArgumentParser):
        # For --epochs: the docs' datasets are not here.
        with patch.object(options, "training_images", lambda data: 10_000):
            return options.parse(parser, words)

    with _raising(parser), _lenient(parser, complete):
        try:
            return parser.parse_args(list(words))
        except argparse.ArgumentError as mistake:
            raise UserError(str(mistake)) from None


@contextmanager
def _raising(parser: ArgumentParser) -> Iterator[None]:
    """Mistakes raise UserError as in our own parsers: plain argparse would end the process."""

    def error(message: str) -> NoReturn:
        raise UserError(message)

    with patch.object(parser, "error", error if type(parser) is ArgumentParser else parser.error):
        yield


@contextmanager
def _lenient(parser: ArgumentParser, complete: bool) -> Iterator[None]:
    required = [] if complete else [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    try:
        yield
    finally:
        for action in required:
            action.required = True


def parsers_of(module: str) -> dict[str, ArgumentParser]:
    """A command's parsers by what is typed: of each subcommand, and a launcher's of what stands before --evaluate."""
    typed, parser = commands()[module], parser_of(module, "--help")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {f"{typed} {name}": child for name, child in action.choices.items()}
    parsers = {typed: parser}
    if any("--evaluate" in action.option_strings for action in parser._actions):
        parsers[f"{typed} ... --evaluate"] = parser_of(module, "--evaluate")
    return parsers
