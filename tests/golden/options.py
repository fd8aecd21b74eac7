"""The frozen list of what users may type: every command's options, the keys of configs and of site files.

    python -m tests.golden.options        writes options.txt anew

A line is a promise. A new one is a decision; one that goes, or changes, breaks command lines and files of users.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from launch.on_slurm.sbatch import PREFIX, WORDS
from launch.site import Site
from pipeline.base.parsing import CommandParser
from pipeline.base.words import ALIASES
from pipeline.run.config import Config
from pipeline.run.options import key_names
from tests import commands

FILE = Path(__file__).parent / "options.txt"
HEAD = "# What users may type, frozen by tests/test_interface.py; written by `python -m tests.golden.options`.\n"
OF_PARSERS = ("-h", "--help", "--print_shtab")  # the last is added by jsonargparse, where it finds shtab


def interface() -> list[str]:
    """One line for each option of each command, key of configs and key of site files, sorted."""
    lines = [f"config: {line}" for line in _keys(Config)]
    lines += [f"a config's key: {word} is {key}" for word, key in ALIASES.items()]
    lines += [f"site file: {line}" for line in _keys(Site)]
    lines += [f"a word of sbatch: {word} is {PREFIX}{key}" for word, key in WORDS.items()]
    for module in commands.commands():
        if module.partition(".")[0] not in ("bench", "tests"):
            for typed, parser in commands.parsers_of(module).items():
                lines += [f"{typed}: {line}" for line in _options(parser)]
    return sorted(lines)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Those of a command that takes the config's keys are one line."""
    keys = {f"--{key}" for key in key_names()}
    if keys <= {name for action in parser._actions for name in action.option_strings}:
        yield "the config's keys"
    else:
        keys = set()
    for action in parser._actions:
        known = {name.removesuffix(".help") for name in action.option_strings} <= keys | set(OF_PARSERS)
        if not action.option_strings or not known:
            yield _words(action)


def _words(action: argparse.Action) -> str:
    """An option as it is typed: its names, VALUE or the choices where it takes one."""
    name = "/".join(action.option_strings) or str(action.metavar or action.dest).upper()
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE"
    counts: dict[object, str] = {"?": "optional", "*": "any number", "+": "one or more", None: "", 0: ""}
    many = counts.get(action.nargs, str(action.nargs))
    needed = "required" if action.option_strings and action.required else ""
    takes_value = bool(action.option_strings) and action.nargs != 0
    notes = ", ".join(note for note in (many, needed) if note)
    return " ".join([name, *([value] if takes_value else []), *([f"({notes})"] if notes else [])])


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """The keys of a dataclass, with their choices where their values are named."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _keys(hint, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}{_choices(hint)}"
            for item in get_args(hint):  # of a list of mappings
                if dataclasses.is_dataclass(item):
                    assert isinstance(item, type)
                    yield from _keys(item, f"{prefix}{one.name}[].")


def _choices(hint: Any) -> str:
    named = [value for one in (hint, *get_args(hint)) if get_origin(one) is Literal for value in get_args(one)]
    return " {" + ",".join(map(str, named)) + "}" if named else ""


def write_options() -> None:
    FILE.write_text(HEAD + "".join(f"{line}\n" for line in interface()))


def main(argv: Sequence[str] | None = None) -> None:
    CommandParser("Writes tests/golden/options.txt anew.", "python -m tests.golden.options").parse_args(argv)
    write_options()


if __name__ == "__main__":
    main()
