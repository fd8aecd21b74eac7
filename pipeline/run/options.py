"""Reads config files and command lines into a `Config`, strictly; what does not fit gets a sentence with a remedy."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse

from pipeline.base.checkout import CONFIGS, RECIPE, configs
from pipeline.base.command import UserError, check_printed
from pipeline.base.files import read_yaml
from pipeline.base.parsing import unknown_option
from pipeline.base.typed import check_keys, read_typed
from pipeline.base.words import ALIASES, SECTIONS, value_meaning
from pipeline.models.architecture import known_nets
from pipeline.run.batch_scaling import read_factor, scale_batch
from pipeline.run.config import Config, check, check_secrets
from pipeline.run.epochs import OPTION as EPOCHS
from pipeline.run.epochs import read_epochs, training_images, with_epochs
from pipeline.run.help import HELP_ALL, Option, long_help, short_help, type_words

EXPERIMENT = "tracking.experiment"


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose --help is short."""

    sentence, example = "", ""
    own: Sequence[Option] = ()

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return short_help(self.sentence, self.example, self.own)


def parser(sentence: str, example: str, own: Sequence[Option] = ()) -> jsonargparse.ArgumentParser:
    """A parser with `--config FILE` and every key of `Config` as an option. The command adds its other options.

    own: those of them that --help shows before the config's keys; --help-all shows all.
    """
    arg_parser = _Parser(
        description=f"{sentence}\n\nexample:\n  {example}", exit_on_error=False, allow_abbrev=False, print_config=None
    )
    arg_parser.sentence, arg_parser.example, arg_parser.own = sentence, example, own
    arg_parser.add_argument(HELP_ALL, action="store_true", help="show this text and exit")
    arg_parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help=f"YAML file of the values below; later options override it; without it configs/{RECIPE}",
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
    arg_parser.add_argument(
        EPOCHS,
        type=str,
        metavar="E",
        help="how often the run sees each training image of the dataset, in place of --iterations: the recipe's schedule is "
        "stretched to that length; values that the command line gives stay",
    )
    arg_parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    return arg_parser


def parse(arg_parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, jsonargparse.Namespace]:
    """Read a command line into (config, the command's other options). Raises UserError for what does not fit.

    A command line without `--config` has the values of RECIPE, as if that had been given first. A run whose MLflow
    experiment nothing names belongs to the one that has the name of its config file.
    """
    argv = _with_lists([_config_spelling(word) for word in argv], arg_parser)
    if HELP_ALL in argv:
        assert isinstance(arg_parser, _Parser)
        print(
            long_help(arg_parser.sentence, arg_parser.example, arg_parser, _values_in_force(arg_parser, argv)), end=""
        )
        check_printed()
        sys.exit(0)
    if not _config_files(argv) and not {"-h", "--help"} & set(argv):  # help needs no file, and a wheel has none
        argv = [f"--config={configs() / RECIPE}", *argv]
    for file in _config_files(argv):
        check_keys(Config, _values(file), str(file))
    try:
        args = arg_parser.instantiate(arg_parser.parse_args(_with_experiment(argv)))
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_sentence(str(error), arg_parser)) from None
    config = Config(**{key.name: args.pop(key.name) for key in dataclasses.fields(Config)})
    factor, epochs = args.pop("scale_batch"), args.pop("epochs")
    if epochs is not None:
        config = _of_length(config, read_epochs(epochs), read_factor(factor or "1"), _given_keys(argv))
    elif factor is not None:
        config = scale_batch(config, read_factor(factor))
    check(config)
    check_secrets(config)
    return config, args


def _of_length(config: Config, epochs: Fraction, factor: Fraction, given: Collection[str]) -> Config:
    if "iterations" in given:
        raise UserError(f"{EPOCHS} and --iterations both say how long the run is: give one of them")
    return with_epochs(config, epochs, training_images(config.data), given, factor)


def _given_keys(argv: Sequence[str]) -> set[str]:
    """The config keys among the options of a command line."""
    return {word.partition("=")[0].removeprefix("--").rstrip("+") for word in argv if word.startswith("--")} & {
        *key_names()
    }


def _values_in_force(arg_parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> Config:
    """The config of a command line that asks for --help-all; in a wheel, which has no configs/, the defaults."""
    words = [word for word in argv if word not in (HELP_ALL, "-h", "--help")]
    return parse(arg_parser, words)[0] if CONFIGS.is_dir() or _config_files(words) else Config()


def _with_experiment(argv: Sequence[str]) -> list[str]:
    """`argv` with the name of the last config file as MLflow experiment, where no file and no option gives one."""
    files = _config_files(argv)
    named = any("experiment" in (_values(file).get("tracking") or {}) for file in files)
    key = f"--{EXPERIMENT}"
    if not files or named or any(word.partition("=")[0] == key for word in argv):
        return list(argv)
    return [*argv, f"{key}={files[-1].stem}"]


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
    option = ALIASES.get(option, option)
    spelled = option[2:].replace("-", "_") if option.startswith("--") else ""
    return f"--{spelled}{equals}{value}" if spelled in key_names() else f"{option}{equals}{value}"


def _with_lists(argv: Sequence[str], arg_parser: jsonargparse.ArgumentParser) -> list[str]:
    """`argv` with the values of lists of words as lists: `--init_exclude fc,layer4` is `--init_exclude ["fc","layer4"]`."""
    hints = {name: getattr(one, "_typehint", None) for one in arg_parser._actions for name in one.option_strings}
    words = list(argv)
    for place, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if hints.get(option) != tuple[str, ...]:
            continue
        if equals:
            words[place] = f"{option}={_as_list(value)}"
        elif place + 1 < len(words):
            words[place + 1] = _as_list(words[place + 1])
    return words


def _as_list(value: str) -> str:
    return value if not value or value.startswith(("[", "--")) else json.dumps(value.split(","))


def _config_files(argv: Sequence[str]) -> list[Path]:
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    files += [after for word, after in itertools.pairwise(argv) if word == "--config"]
    return [Path(file) for file in files]


def _one_sentence(message: str, arg_parser: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message as one sentence with a remedy."""
    if message.startswith("unrecognized arguments:"):
        names = [name for action in arg_parser._actions for name in action.option_strings]
        names += [name.replace("_", "-") for name in names]
        return unknown_option(message, list(dict.fromkeys(names)))
    if match := re.fullmatch(r"argument (--\S+): expected one argument", message):
        return _without_value(match[1], arg_parser)
    if match := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        key, reason = match[1], " ".join(match[2].split())
        action = next((action for action in arg_parser._actions if action.dest == key), None)
        hint = getattr(action, "_typehint", None)
        value = re.search(r"(?:Got value|Given value): (.*)$", reason)
        if hint is not None and value:
            advice = value_meaning(f"--{key}", value[1]) or f"give {type_words(hint)}, not '{value[1]}'"
            return f"{key} does not fit: {advice}"
        if "Unable to load config" in reason:
            further = f"; {SECTIONS[key]}" if key in SECTIONS else ""
            return f"{key} does not fit: give its keys one by one, as in --{key}.KEY VALUE (see --help-all){further}"
        reason = re.sub(r"<class '(\w+)'>", r"\1", reason).replace("typing.", "")
        reason = re.sub(r"Problem with given class_path '\S+': ", "one of its items: ", reason)
        return f"{key} does not fit: {reason.rstrip('.')}"
    return " ".join(message.split())


def _without_value(option: str, arg_parser: jsonargparse.ArgumentParser) -> str:
    """A sentence on an option that was given alone: `--freeze_bn` is `--freeze-bn true`."""
    name = option.replace("_", "-") if option.removeprefix("--") in key_names() else option
    action = next(action for action in arg_parser._actions if option in action.option_strings)
    hint = getattr(action, "_typehint", None)
    if hint is bool:
        return f"{name} needs a value: {name} true, or {name} false"
    return (
        f"{name} needs a value: give {type_words(hint)} behind it" if hint else f"{name} needs a value: see --help-all"
    )
