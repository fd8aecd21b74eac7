"""The field's words: what is suggested exists, and says what the word means where it was typed."""

from __future__ import annotations

import re
from functools import cache

import pytest

from pipeline.base.words import ALIASES, MEANINGS, Meaning, meaning, weights_meaning
from pipeline.run.options import key_names
from tests import commands

TYPED = ("gpu:a100:8", "64G", "cosine", "")  # for meanings that depend on the value


@cache
def options_by_command() -> dict[str, frozenset[str]]:
    """Of each command of pipeline/, launch/ and data_prep/: the options it takes, in both spellings."""
    found = {}
    for module in commands.commands():
        if module.startswith(("pipeline.", "launch.", "data_prep.")) and commands.has_parser(module):
            for typed, parser in commands.parsers_of(module).items():
                names = {name for action in parser._actions for name in action.option_strings}
                found[typed] = frozenset(names | {name.replace("_", "-") for name in names})
    return found


def sentence_of(one: Meaning, value: str) -> str:
    return one.text(value) if callable(one.text) else one.text


@pytest.mark.parametrize("one", MEANINGS, ids=lambda one: f"{one.words.split()[0]} {one.needs}")
def test_what_is_suggested_exists(one: Meaning) -> None:
    commands_with_it = {
        typed: names for typed, names in options_by_command().items() if set(one.needs.split()) <= names
    }
    assert commands_with_it, f"no command takes {one.needs}"
    for value in TYPED:
        said = sentence_of(one, value)
        for typed, names in commands_with_it.items():
            # Options of other commands are no options of this one.
            own = re.sub(r"python (-m )?\S+( export)?( [A-Z]+)?( --[a-z-]+( \S+)?)*|torchrun", "", said)
            for option in re.findall(r"(?<!\S)--[a-z][a-z.-]*[a-z]", own):
                assert option in names, f"{typed} has no {option}: {one.words}: {said}"


@pytest.mark.parametrize("one", MEANINGS, ids=lambda one: f"{one.words.split()[0]} {one.needs}")
def test_commands_in_an_answer_fit_their_parsers(one: Meaning) -> None:
    from tests.command_lines import check_ours

    command = re.compile(r"python ((?:-m )?[\w./]+)((?: (?:--?[\w.-]+|[A-Z]+|\{value\}|\d+)(?=[ ,;)]|$))*)")
    for name, words in command.findall(sentence_of(one, "")):
        if name.startswith("-m pipeline.tracking"):
            continue  # `export` without its run
        check_ours([*name.split(), *words.replace("{value}", "1").split(), *([] if words.strip() else ["..."])])


def test_a_word_is_not_an_option_of_the_commands_that_answer_it() -> None:
    """Else the answer could never be seen."""
    for one in MEANINGS:
        for word in one.words.split():
            seen = [
                typed
                for typed, names in options_by_command().items()
                if set(one.needs.split()) <= names and word not in names
            ]
            assert seen, f"{word}: every command with {one.needs} takes it as an option"


def test_an_alias_is_no_option_and_names_one() -> None:
    assert {key.removeprefix("--") for key in ALIASES.values()} <= {*key_names(), "epochs"}
    training = options_by_command()["python launch/local.py"]
    assert not set(ALIASES) & training


@pytest.mark.parametrize(
    ("word", "value", "command", "said"),
    [
        ("--mem", "64G", "launch/slurm.py", "--mem-gb 64"),
        ("--mem", "128000", "launch/slurm.py", "--mem-gb 128"),
        ("--mem", "1T", "launch/slurm.py", "--mem-gb 1000"),
        ("--gpus", "4", "launch/local.py", "--procs 4"),
        ("--gpus", "4", "launch/ray_train.py", "--workers 4"),
        ("--lr_scheduler", "cosineannealinglr", "launch/local.py", "--schedule.kind cosine"),
        ("-j", "8", "launch/local.py", "--loader.threads 8"),
        ("-j", "8", "data_prep/shard_imagenet.py", "--workers 8"),
        ("--max_steps", "100", "launch/local.py", "--iterations 100"),
        ("--resume", "x", "launch/slurm.py", "continues by itself"),
        ("--resume", "x", "launch/slurm.py", "--init RUN --name OTHER starts another run"),
        ("--pretrained", "", "launch/local.py", "--init torchvision:NET, or --init FILE with"),
        ("--initial-checkpoint", "x.pth", "launch/ray_train.py", "is --init here"),
        ("--freeze-backbone", "", "launch/local.py", "--optimizer.body-lr-factor 0"),
        ("--batch-size", "64", "launch/local.py", "--batch 64 x R"),
        (
            "--weights",
            "ResNet50_Weights.IMAGENET1K_V2",
            "launch/local.py",
            "is --init here: --init torchvision:resnet50/IMAGENET1K_V2",
        ),
        ("--pretrained", "resnet18", "launch/local.py", "is --init here: --init torchvision:resnet18"),
        ("--val-split", "0.2", "launch/local.py", "data_prep/shard_imagenet.py SOURCE --hold-out 0.2"),
        ("--hold-out", "0.2", "launch/slurm.py", "data_prep/shard_imagenet.py SOURCE --hold-out 0.2"),
        ("--val", "0.1", "data_prep/shard_imagenet.py", "--hold-out 0.1"),
        ("--recursive", "", "data_prep/shard_imagenet.py", "is not needed"),
        ("--early-stopping", "3", "launch/local.py", "has no equal here"),
        ("--class-weights", "", "launch/local.py", "has no equal here"),
        ("--unfreeze-epoch", "3", "launch/local.py", "has no equal here"),
    ],
)
def test_the_answer_is_the_commands_own(word: str, value: str, command: str, said: str) -> None:
    assert said in str(meaning(word, value, options_by_command()[f"python {command}"]))


@pytest.mark.parametrize("word", ["--tta", "--protocol"])
def test_predictions_have_one_protocol(word: str) -> None:
    said = str(meaning(word, "ten-crop", options_by_command()["python -m pipeline.predict"]))
    assert said.startswith(f"{word} has no equal here")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ResNet50_Weights.IMAGENET1K_V2", "torchvision:resnet50/IMAGENET1K_V2 here"),
        ("torchvision.models.ResNet18_Weights.DEFAULT", "torchvision:resnet18 here"),
        ("resnet50", "torchvision:resnet50 here"),
        ("resnet50/IMAGENET1K_V1", "torchvision:resnet50/IMAGENET1K_V1 here"),
        ("timm:resnet50.a1_in1k", "with --given timm"),
        ("hf-hub:timm/resnet50.a1_in1k", "with --given timm"),
        ("hf_hub:timm/resnet50.a1_in1k", "with --given timm"),
        ("https://example.org/resnet50.pth", "with --given timm"),
    ],
)
def test_weights_in_other_tools_words(name: str, said: str) -> None:
    assert str(weights_meaning(name, "--given")).endswith(said)


@pytest.mark.parametrize("name", ["resnet51", "runs/resnet50", "resnet50.pth", "resnet50-seed0", "timms", "a"])
def test_places_are_no_other_tools_words(name: str) -> None:
    assert weights_meaning(name, "--given") is None


def test_a_word_without_a_meaning_is_left_to_spelling() -> None:
    assert meaning("--nods", "", options_by_command()["python launch/slurm.py"]) is None
    assert meaning("--epochs", "", options_by_command()["python -m pipeline.evaluate"]) is None
