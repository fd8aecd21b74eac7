"""How config files and command lines become a `Config`: strictly, with a remedy for whatever does not fit."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse

from pipeline.base.command import UserError, nearest
from pipeline.base.files import read_yaml
from pipeline.models.architecture import known_nets
from pipeline.run.batch_scaling import read_factor, scale_batch
from pipeline.run.config import Config, check


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose help opens with its sentence and example."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        _, rest = super().format_help(formatter).split("\noptions:\n", 1)
        return f"{self.description}\n\noptions:\n{rest}"


def parser(description: str, example: str) -> jsonargparse.ArgumentParser:
    """A command-line parser with `--config FILE` and every value of `Config` as an option; add the command's own to it."""
    made = _Parser(
        description=f"{description}\n\nexample:\n  {example}",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    made.add_argument("--config", action="config", help="YAML file of the values below; later options override it")
    made.add_class_arguments(Config, None)
    next(action for action in made._actions if action.dest == "arch").help = f"the net: {known_nets()}"
    made.add_argument(
        "--scale-batch",
        type=str,
        metavar="F",
        help="weak scaling: F times the batch and the learning rate, linear warm-up, 1/F of the iterations: the same "
        "images in all; applied last, to the values as they are resolved",
    )
    made.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    return made


def parse(made: jsonargparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, jsonargparse.Namespace]:
    """Read options into (config, the command's own options). Raises UserError for whatever does not fit."""
    argv = [_config_spelling(word) for word in argv]
    for file in _config_files(argv):
        check_keys(file)
    try:
        options = made.parse_args(argv)
        instance = made.instantiate(options)
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_sentence(str(error), made)) from None
    names = [one.name for one in dataclasses.fields(Config)]
    config = Config(**{name: instance.pop(name) for name in names})
    if (factor := instance.pop("scale_batch")) is not None:
        config = scale_batch(config, read_factor(factor))
    check(config)
    return config, instance


def load(path: Path) -> Config:
    """Read a config file alone (a run's config.yaml). Raises UserError as `parse` does."""
    return parse(_file_parser(), ["--config", str(path)])[0]


@cache  # making one takes a third of a second
def _file_parser() -> jsonargparse.ArgumentParser:
    return parser("Reads a config.", "none")


def check_keys(path: Path) -> None:
    """Raise UserError where a YAML file is not readable or holds a key that the config does not know."""
    values = read_yaml(path, "config file")
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} holds no 'key: value' lines: see configs/ for examples")
    _check_mapping(values, Config, str(path), "")


def _check_mapping(values: Mapping[str, Any], kind: type, place: str, prefix: str) -> None:
    types = get_type_hints(kind)
    valid = [one.name for one in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in valid:
            raise UserError(f"unknown key '{prefix}{key}' in {place}: {nearest(str(key), valid)}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types[key]):
            _check_mapping(value, types[key], place, f"{prefix}{key}.")
        for number, item in enumerate(value if isinstance(value, list) else ()):
            (kind_of_item, *_) = get_args(types[key]) or (None,)
            if isinstance(item, Mapping) and dataclasses.is_dataclass(kind_of_item):
                assert isinstance(kind_of_item, type)
                _check_mapping(item, kind_of_item, place, f"{prefix}{key}[{number}].")


def key_names(kind: type = Config, prefix: str = "") -> list[str]:
    types, found = get_type_hints(kind), []
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[one.name]):
            found += key_names(types[one.name], f"{prefix}{one.name}.")
        found.append(prefix + one.name)
    return found


def _config_spelling(word: str) -> str:
    """Config keys may be typed with hyphens, as other options are: --bn-group is --bn_group."""
    option, equals, value = word.partition("=")
    spelled = option[2:].replace("-", "_") if option.startswith("--") else ""
    return f"--{spelled}{equals}{value}" if spelled in key_names() else word


def _config_files(argv: Sequence[str]) -> list[Path]:
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    files += [after for word, after in itertools.pairwise(argv) if word == "--config"]
    return [Path(file) for file in files]


def _one_sentence(message: str, made: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message as one sentence with a remedy."""
    if message.startswith("unrecognized arguments:"):
        word = message.split(":", 1)[1].split()[0]
        if not word.startswith("--"):
            return f"'{word}' was not expected on the command line: options start with '--' (see --help)"
        valid = [option for action in made._actions for option in action.option_strings if option.startswith("--")]
        return f"{word.partition('=')[0]} is not an option: {nearest(word.partition('=')[0], valid)}"
    if found := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        reason = re.sub(r"<class '(\w+)'>", r"\1", " ".join(found[2].split())).replace("typing.", "")
        reason = re.sub(r"Problem with given class_path '\S+': ", "one of its items: ", reason)
        return f"{found[1]} does not fit: {reason.rstrip('.')}"
    return " ".join(message.split())
