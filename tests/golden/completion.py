"""completion.sh: what bash and zsh complete of this project's commands, taken from the commands' own parsers.

    python -m tests.golden.completion        writes completion.sh anew

A press of Tab starts no Python, which would take seconds: the script holds the options, and looks for files and runs itself.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin, get_type_hints

from launch.on_slurm.sbatch import OPTION, WORDS
from pipeline.base.parsing import CommandParser
from pipeline.base.words import ALIASES
from pipeline.models.architecture import CIFAR_DEPTHS, net_names
from pipeline.run.config import Config
from pipeline.run.options import key_names
from tests import commands
from tests.helpers import ROOT

FILE = ROOT / "completion.sh"
# What stands behind an option or as a command's word, by the kinds that the script finds itself.
KINDS = {
    "--config": "configs",
    "--site": "configs",
    "--data": "datasets",
    "--evaluate": "runs",
    "RUN": "runs",
    "RUN|CHECKPOINT": "runs",
    "RUN|SCORES": "runs",
    "MEMBER": "runs",
    "DATASET": "datasets",
}
# Words of commands whose parsers call them `name`.
NAMES = {"python launch/status.py": "runs", "python -m pipeline.experiment": "experiments"}

HEAD = """\
# Completes the commands of this checkout in bash and zsh: options, nets, configs, datasets, run folders.
# Read it once per shell, from ~/.bashrc or ~/.zshrc:    . /PATH/TO/THE/CHECKOUT/completion.sh
# Written by `python -m tests.golden.completion`: do not edit.

if [ -n "${ZSH_VERSION:-}" ]; then
    autoload -U +X compinit bashcompinit
    (( $+functions[compdef] )) || compinit -u
    bashcompinit
fi
"""

BODY = """\
_resnets_found() { # $1: what is looked for, below the working directory
    local file
    case "$1" in
        configs) for file in configs/*.yaml; do [ -f "$file" ] && echo "$file"; done ;;
        experiments) for file in configs/experiments/*.yaml; do
            [ -f "$file" ] && file="${file##*/}" && echo "${file%.yaml}"; done ;;
        datasets) for file in data/*/manifest.json demo/*/manifest.json; do [ -f "$file" ] && echo "${file%/*}"; done ;;
        runs) for file in runs/*/config.yaml demo/runs/*/config.yaml; do [ -f "$file" ] && echo "${file%/*}"; done ;;
        *) echo "$1" ;;
    esac
}

_resnets_command() { # prints the command that the words before the cursor start, as the tables above name it
    local at=0 word next name=""
    while [ "$at" -lt "$COMP_CWORD" ]; do
        word="${COMP_WORDS[$at]}"
        at=$((at + 1))
        next="${COMP_WORDS[$at]}"
        if [ -n "$name" ]; then
            case "$name $word" in
                *' --evaluate') name=pipeline.evaluate ;;
                'pipeline.tracking '[a-z]*) [ -n "$(_resnets_options "$name $word")" ] && name="$name $word" ;;
            esac
            continue
        fi
        case "$word" in
            -m) [ "$at" -lt "$COMP_CWORD" ] && name="$next" ;;
            */*.py) name="${word%/*}" && name="${name##*/}/${word##*/}" ;;
        esac
        [ -n "$(_resnets_options "$name")" ] || name=""
    done
    echo "$name"
}

_resnets() {
    [ -n "${ZSH_VERSION:-}" ] && emulate -L ksh
    local current="${COMP_WORDS[$COMP_CWORD]}" before="${COMP_WORDS[$((COMP_CWORD - 1))]}" stem="" command words word
    COMPREPLY=()
    [ "$current" = "=" ] && current=""
    [ "$before" = "=" ] && before="${COMP_WORDS[$((COMP_CWORD - 2))]}"
    case "$current" in # zsh leaves --option=value in one word
        --*=*) before="${current%%=*}" && stem="$before=" && current="${current#*=}" ;;
    esac
    if [ "$before" = -m ]; then
        words="$_resnets_modules"
    else
        command="$(_resnets_command)"
        [ -n "$command" ] || return 0
        words="$(_resnets_values "$command" "$before")"
        [ "$before" = --evaluate ] && words=runs
        case "$current" in
            -*) [ -n "$words" ] || words="$(_resnets_options "$command")" ;;
            *) case "$before" in
                -*) [ -n "$words" ] || [ -n "$(_resnets_switch "$command" "$before")" ] || return 0 ;;
            esac
            [ -n "$words" ] || words="$(_resnets_values "$command" word)" ;;
        esac
        words="$(for word in $words; do _resnets_found "$word"; done)"
    fi
    for word in $words; do
        case "$word" in
            "$current"*) COMPREPLY+=("$stem$word") ;;
        esac
    done
}

"""


def script() -> str:
    """The whole script."""
    options, values, switches, modules = [], [], [], []
    keys = [f"--{key.replace('_', '-')}" for key in _leaves()]
    for module, typed in commands.commands().items():
        if not module.startswith(("pipeline.", "launch.", "data_prep.")):
            continue
        if typed.startswith("python -m "):
            modules.append(typed.removeprefix("python -m "))
        for name, parser in commands.parsers_of(module).items():
            if "... --evaluate" in name:
                continue  # its options are among those of the training
            known = name.removeprefix("python ").removeprefix("-m ")
            own, many = _names(parser), set(keys) <= {option.replace("_", "-") for option in _names(parser)}
            listed = [option for option in own if not many or option.replace("_", "-") not in keys]
            shared = ["$_resnets_keys"] if many else []
            options.append(f"        '{known}') echo \"{' '.join([*listed, *shared])}\" ;;")
            no_value = sorted({o for action in parser._actions if action.nargs == 0 for o in action.option_strings})
            switches.append(f"        {_either(known, no_value)}) echo yes ;;")
            values += [
                f"        {_either(known, names)}) echo '{found}' ;;" for names, found in _values(name, parser, many)
            ]
        subcommands = [
            child.split()[-1] for child in commands.parsers_of(module) if child != typed and "..." not in child
        ]
        if subcommands:
            name = typed.removeprefix("python -m ")
            options.append(f"        '{name}') echo '{' '.join(subcommands)} --help' ;;")
            values.append(f"        {_either(name, ['word'])}) echo '{' '.join(subcommands)}' ;;")
    shared_values = [f"        *' {option}') echo '{found}' ;;" for option, found in _values_of_keys()]
    names = [name for name in commands.commands().values() if name.startswith("python launch/") or "data_prep/" in name]
    files = [name.removeprefix("python ") for name in names]
    targets = ["python", "python3", ".venv/bin/python", "torchrun", *files, *(f"./{name}" for name in files)]
    return "".join(
        (
            HEAD,
            f"\n_resnets_modules='{' '.join(sorted(modules))}'\n_resnets_keys='{' '.join([*sorted(keys), *_short()])}'\n",
            _table("_resnets_options", "$1: command", '"$1"', options),
            _table(
                "_resnets_switch",
                "$1: command, $2: option; prints something where it takes no value",
                '"$1 $2"',
                switches,
            ),
            _table(
                "_resnets_values", "$1: command, $2: option, or `word` for its words", '"$1 $2"', values + shared_values
            ),
            "\n" + BODY,
            f"complete -o default -o bashdefault -F _resnets {' '.join(targets)}\n",
        )
    )


def _table(name: str, arguments: str, key: str, cases: Sequence[str]) -> str:
    return "\n".join(("", f"{name}() {{ # {arguments}", f"    case {key} in", *cases, "    esac", "}", ""))


def _either(command: str, words: Sequence[str]) -> str:
    return "|".join(f"'{command} {word}'" for word in words)


def _names(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser, but jsonargparse's `--optimizer FILE` and `--augment.stages.help`."""
    sections = {f"--{key}" for key in key_names()} - {f"--{key}" for key in _leaves()}
    names = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    if OPTION in names:
        names |= {word for word in WORDS if word.startswith("--")}
    return sorted(name for name in names - sections if not name.endswith((".help", "shtab")))


def _leaves() -> list[str]:
    names = key_names()
    return [key for key in names if not any(other.startswith(f"{key}.") for other in names)]


def _short() -> list[str]:
    return sorted(word for word in ALIASES if "_" not in word)


def _values(name: str, parser: argparse.ArgumentParser, many: bool) -> Iterator[tuple[list[str], str]]:
    """(options, or `word`, what may stand behind them) of a command beside the config's keys."""
    keys = {f"--{key}" for key in key_names()} if many else set()
    words = [NAMES[name]] if name in NAMES else []
    for action in parser._actions:
        if set(action.option_strings) & keys:
            continue
        found = " ".join(map(str, action.choices or [])) if action.option_strings else ""
        for place in (*action.option_strings, str(action.metavar), action.dest):
            found = found or KINDS.get(place, "")
        if action.option_strings and found:
            yield list(action.option_strings), found
        elif found:
            words.append(found)
    if words:
        yield ["word"], " ".join(dict.fromkeys(words))


def _values_of_keys() -> Iterator[tuple[str, str]]:
    """(option, what may stand behind it) of the config's keys."""
    nets = " ".join(net_names(CIFAR_DEPTHS))
    yield "--arch", nets
    yield "--model", nets
    yield "--data", "datasets"
    yield "--init", "runs"
    for key, choices in _choices(Config):
        for option in dict.fromkeys((f"--{key}", f"--{key.replace('_', '-')}")):
            yield option, " ".join(choices)


def _choices(kind: type, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """(dotted key, its values) where a key has a few named values."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _choices(hint, f"{prefix}{name}.")
        elif hint is bool:
            yield prefix + name, ["true", "false"]
        elif named := [
            str(value) for one in (hint, *get_args(hint)) if get_origin(one) is Literal for value in get_args(one)
        ]:
            yield prefix + name, named


def main(argv: Sequence[str] | None = None) -> None:
    CommandParser("Writes completion.sh anew.", "python -m tests.golden.completion").parse_args(argv)
    FILE.write_text(script())


if __name__ == "__main__":
    main()
