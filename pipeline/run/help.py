"""What --help and --help-all print for the commands that take a config's keys. Imports no torch: --help appears at once."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pipeline.base.parsing import usage

HELP_ALL = "--help-all"
COLUMNS = 100  # at most: longer lines are hard to read
_SECTIONS_FILES = "Path to a configuration file."  # jsonargparse's help for `--optimizer FILE`


@dataclass(frozen=True)
class Option:
    """An option as --help shows it. value: what stands behind the name; "" for a switch."""

    name: str
    value: str
    text: str


class Opening(NamedTuple):
    """What a command's --help opens with."""

    sentence: str
    example: str


TRAINING = Opening(  # of python -m pipeline.train
    "Trains one net on the dataset folder that the config names, or continues its run.",
    "python -m pipeline.train --config configs/demo.yaml --name one-process",
)

# The config's keys that one needs first. Their defaults are those of configs/imagenet.yaml.
FIRST = (
    Option("--config", "FILE", "the recipe, a file like those in configs/ (default: configs/imagenet.yaml)"),
    Option("--arch", "NET", "resnet18, 34, 50, 101, 152, plain18, plain34; for CIFAR resnet20, 32, 44, 56, 110 ..."),
    Option("--data", "FOLDER", "the dataset folder, which data_prep/ makes (default: data/imagenet)"),
    Option("--name", "NAME", "of the run (default: ARCH-seedN); the same name continues the run"),
    Option("--runs", "FOLDER", "holds the run folders (default: runs)"),
    Option(
        "--init",
        "RUN|FILE|torchvision:NET",
        "start from these weights, to fine-tune them (docs/fine-tuning.md); a FILE needs --init-preprocessing",
    ),
    Option("--seed", "N", "of weights, order and augmentation (default: 0)"),
    Option("--iterations", "N", "updates in all (default: 600000)"),
    Option(
        "--epochs", "E", "in place of it: how often the run sees each training image; the schedule is stretched to that"
    ),
    Option("--batch", "N", "images of a mini-batch, over all ranks together (default: 256)"),
    Option("--optimizer.lr", "X", "the learning rate to begin with (default: 0.1); --lr is the same"),
    Option("--precision", "float32|bf16", "of the net's arithmetic (default: bf16)"),
    Option("--device", "auto|cpu|cuda", "where to compute (default: auto)"),
)
LAST = (
    Option("--print-config", "", "print the whole config and exit"),
    Option(HELP_ALL, "", "show every option, with the values that hold for this command line"),
)


def short_help(sentence: str, example: str, own: Sequence[Option] = ()) -> str:
    """The text of --help. own: the command's options beside the config's keys that one needs first."""
    options = [*own, *FIRST, *LAST]
    width = max(len(f"{option.name} {option.value}") for option in options)
    formatter = argparse.RawDescriptionHelpFormatter("", max_help_position=width + 4, width=_columns())
    formatter.start_section("the options that one needs first")
    formatter.add_arguments([_plain(option.name, option.value, option.text) for option in options])
    formatter.end_section()
    return f"{opening(sentence, example)}\n\n{formatter.format_help()}"


def opening(sentence: str, example: str) -> str:
    """Usage, sentence and example."""
    return f"usage: {usage(example)} [options]\n\n{sentence}\n\nexample:\n  {example}"


def print_short_help(sentence: str, example: str, own: Sequence[Option] = ()) -> None:
    """Answer a command line that asks for --help, before imports that take seconds."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(short_help(sentence, example, own), end="")
        sys.exit(0)


def long_help(sentence: str, example: str, parser: argparse.ArgumentParser, values: Any) -> str:
    """The text of --help-all. parser: jsonargparse's; values: the config whose values are shown beside its keys."""
    formatter = argparse.RawDescriptionHelpFormatter("", max_help_position=32, width=_columns())
    formatter.add_text("N is a whole number, X a number; 'here' is the value that holds for this command line.")
    for group in parser._action_groups:
        title, *_ = re.split(r"\.\s+(?=[A-Z])", (group.title or "").rstrip(":;."), maxsplit=1)
        formatter.start_section(title)
        formatter.add_arguments([_shown(action, values) for action in group._group_actions if _is_shown(action)])
        formatter.end_section()
    return f"{opening(sentence, example)}\n\n{formatter.format_help()}"


def type_words(hint: Any) -> str:
    """A type in people's words: `a whole number, or rank`."""
    if choices := _alternatives(hint):
        return ", or ".join(map(type_words, choices))
    (kind,) = _kinds(hint)
    if get_origin(kind) is Literal:
        *before, last = map(str, get_args(kind))
        return f"{', '.join(before)} or {last}" if before else last
    if get_origin(kind) is tuple:
        first, *_ = get_args(kind)
        if is_dataclass(first):
            return "a list such as [{key: value}]"
        example = {int: "256,480", float: "0.1,0.2"}.get(first, "a,b")
        count = "" if Ellipsis in get_args(kind) else f"{len(get_args(kind))} "
        return f"a list of {count}{_PLURAL.get(first, 'words')}, such as [{example}]"
    return _WORDS.get(kind, "text")


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_PLURAL = {int: "whole numbers", float: "numbers"}
_SYMBOLS = {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}


def _kinds(hint: Any) -> list[Any]:
    """The types that a value may have, besides null."""
    if get_origin(hint) in (Union, UnionType):
        return [part for part in get_args(hint) if part is not NoneType]
    return [hint]


def _alternatives(hint: Any) -> list[Any]:
    kinds = _kinds(hint)
    return kinds if len(kinds) > 1 else []


def _symbol(hint: Any) -> str:
    """What stands behind an option's name: `N`, `N|rank`, `{float32,bf16}`."""
    if choices := _alternatives(hint):
        return "|".join(_symbol(kind).strip("{}") for kind in choices)
    (kind,) = _kinds(hint)
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return "[...]" if get_origin(kind) is tuple else _SYMBOLS.get(kind, "TEXT")


def _is_shown(action: argparse.Action) -> bool:
    """Not shown: `--optimizer FILE` and `--augment.stages.help`, which jsonargparse adds."""
    return action.help != _SECTIONS_FILES and not any(name.endswith(".help") for name in action.option_strings)


def _shown(action: argparse.Action, values: Any) -> argparse.Action:
    """An action of jsonargparse's parser as --help-all shows it."""
    names = ", ".join(name.replace("_", "-") for name in action.option_strings)
    text, hint = (action.help or "").rstrip("."), getattr(action, "_typehint", None)
    if action.nargs == 0:
        return _plain(names, "", text)
    symbol = _symbol(hint) if hint is not None and action.metavar in (None, "[ITEM,...]") else str(action.metavar)
    if action.choices:
        symbol = "{" + ",".join(map(str, action.choices)) + "}"
    found = values
    for part in action.dest.split("."):
        found = getattr(found, part, None)
    notes = [type_words(hint)] if symbol == "[...]" or _alternatives(hint) else []
    notes += [] if found is None else [f"here {_spelled(found)}"]
    return _plain(names, symbol, text + (f" ({'; '.join(notes)})" if notes else ""))


def _spelled(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(_spelled, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(name: str, value: str, text: str) -> argparse.Action:
    text = text.replace("%", "%%")
    if not value:
        return argparse.Action([name], "x", nargs=0, help=text)
    return argparse.Action([name], "x", metavar=value, help=text)


def _columns() -> int:
    return min(COLUMNS, shutil.get_terminal_size().columns) - 2


def options_of(parser: argparse.ArgumentParser, names: Sequence[str]) -> Iterator[Option]:
    """The options of a plain parser with these names, as --help shows them."""
    by_name = {name: action for action in parser._actions for name in action.option_strings}
    for name in names:
        action = by_name[name]
        value = "" if action.nargs == 0 else str(action.metavar or _symbol(action.type))
        yield Option(name, value, action.help or "")
