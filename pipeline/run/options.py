"""Reads config files and command lines into a `Config`, strictly; what does not fit gets a sentence with a remedy."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse

from pipeline.base.checkout import RECIPE, configs
from pipeline.base.command import UserError, nearest
from pipeline.base.files import read_yaml
from pipeline.base.typed import check_keys, read_typed
from pipeline.models.architecture import known_nets
from pipeline.run.batch_scaling import read_factor, scale_batch
from pipeline.run.config import Config, check


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose help opens with its sentence and example."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        _, rest = super().format_help(formatter).split("\noptions:\n", 1)
        return f"{self.description}\n\noptions:\n{rest}"


def parser(description: str, example: str) -> jsonargparse.ArgumentParser:
    """A parser with `--config FILE` and every key of `Config` as an option. The command adds its other options."""
    arg_parser = _Parser(
        description=f"{description}\n\nexample:\n  {example}",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    arg_parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file of the values below; later options override it; without it configs/{RECIPE}, whose values precede "
        "the defaults that this help names",
    )
    arg_parser.add_class_arguments(Config, None)
    next(action for action in arg_parser._actions if action.dest == "arch").help = f"the net: {known_nets()}"
    arg_parser.add_argument(
        "--scale-batch",
        type=str,
        metavar="F",
        help="weak scaling: F times the batch and the learning rate, linear warm-up, 1/F of the iterations, so that the "
        "run sees the same images; applied last, to the resolved values",
    )
    arg_parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    return arg_parser


def parse(arg_parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, jsonargparse.Namespace]:
    """Read a command line into (config, the command's other options). Raises UserError for what does not fit.

    A command line without `--config` has the values of RECIPE, as if that had been given first.
    """
    argv = [_config_spelling(word) for word in argv]
    if not _config_files(argv) and not {"-h", "--help"} & set(argv):  # help needs no file, and a wheel has none
        argv = [f"--config={configs() / RECIPE}", *argv]
    for file in _config_files(argv):
        check_keys(Config, _values(file), str(file))
    try:
        args = arg_parser.instantiate(arg_parser.parse_args(argv))
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_sentence(str(error), arg_parser)) from None
    config = Config(**{key.name: args.pop(key.name) for key in dataclasses.fields(Config)})
    if (factor := args.pop("scale_batch")) is not None:
        config = scale_batch(config, read_factor(factor))
    check(config)
    return config, args


def load(path: Path) -> Config:
    """Read a run's config.yaml, which `to_yaml` wrote, without the command-line parser. Raises UserError.

    A key that is missing, because an older version wrote the file, has its default.
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
    """The dotted keys of a config, sections included."""
    types, names = get_type_hints(kind), []
    for key in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[key.name]):
            names += key_names(types[key.name], f"{prefix}{key.name}.")
        names.append(prefix + key.name)
    return names


def _config_spelling(word: str) -> str:
    """A word of a command line with its config key as the config spells it: --bn-group becomes --bn_group."""
    option, equals, value = word.partition("=")
    spelled = option[2:].replace("-", "_") if option.startswith("--") else ""
    return f"--{spelled}{equals}{value}" if spelled in key_names() else word


def _config_files(argv: Sequence[str]) -> list[Path]:
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    files += [after for word, after in itertools.pairwise(argv) if word == "--config"]
    return [Path(file) for file in files]


def _one_sentence(message: str, arg_parser: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message as one sentence with a remedy."""
    if message.startswith("unrecognized arguments:"):
        word = message.split(":", 1)[1].split()[0]
        if not word.startswith("--"):
            return f"'{word}' was not expected on the command line: options start with '--' (see --help)"
        valid = [option for action in arg_parser._actions for option in action.option_strings if option[:2] == "--"]
        return f"{word.partition('=')[0]} is not an option: {nearest(word.partition('=')[0], valid)}"
    if match := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        reason = re.sub(r"<class '(\w+)'>", r"\1", " ".join(match[2].split())).replace("typing.", "")
        reason = re.sub(r"Problem with given class_path '\S+': ", "one of its items: ", reason)
        return f"{match[1]} does not fit: {reason.rstrip('.')}"
    return " ".join(message.split())
