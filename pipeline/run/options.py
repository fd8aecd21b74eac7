"""How config files and command lines become a `Config`: strictly, with a remedy for whatever does not fit."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse

from pipeline.base.command import UserError, nearest
from pipeline.base.files import read_yaml
from pipeline.base.typed import check_keys, read_typed
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
        check_keys(Config, _values(file), str(file))
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
    """Read a run's config.yaml, which `to_yaml` wrote: strictly, and in a tenth of the command-line parser's time.

    Keys that the file does not have, because an older version wrote it, have their defaults. Raises UserError.
    """
    config = read_typed(Config, _values(path), str(path))
    check(config)
    return config


def _values(path: Path) -> Any:
    values = read_yaml(path, "config file")
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} holds no 'key: value' lines: see configs/ for examples")
    return values


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
