"""The words of a command line that trains: synonyms, values that do not fit, help, and the MLflow experiment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import local, ray_train, slurm
from pipeline.base.command import UserError
from pipeline.run.config import Config
from pipeline.run.help import FIRST, LAST
from pipeline.run.options import key_names, parse, parser
from tests import commands
from tests.helpers import ROOT

CONFIGS = ROOT / "configs"


def read(*words: str) -> Config:
    return parse(parser("Trains.", "python launch/local.py"), words)[0]


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["--lr", "0.3"], ["--optimizer.lr", "0.3"]),
        (["--lr=0.3"], ["--optimizer.lr", "0.3"]),
        (["--wd", "1e-3"], ["--optimizer.weight-decay", "1e-3"]),
        (["--weight-decay", "1e-3"], ["--optimizer.weight_decay", "1e-3"]),
        (["--weight_decay", "1e-3"], ["--optimizer.weight_decay", "1e-3"]),
        (["--momentum", "0.8"], ["--optimizer.momentum", "0.8"]),
        (["--model", "resnet18"], ["--arch", "resnet18"]),
        (["--bn-group", "64"], ["--bn_group", "64"]),
        (["--init=x", "--init-exclude", "fc"], ["--init=x", "--init_exclude", '["fc"]']),
        (["--init=x", "--init-exclude=fc,layer4"], ["--init=x", "--init_exclude", "[fc, layer4]"]),
    ],
)
def test_words_that_mean_a_key(words: list[str], same: list[str]) -> None:
    assert read(*words) == read(*same) != read()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "x"], "batch does not fit: give a whole number, not 'x'"),
        (["--bn-group", "x"], "bn_group does not fit: give a whole number, or rank, not 'x'"),
        (["--loader.threads", "1.5"], "loader.threads does not fit: give a whole number, not '1.5'"),
        (["--compile", "maybe"], "compile does not fit: give true or false, not 'maybe'"),
        (["--augment.short-side", "3"], "give a list of 2 whole numbers, such as [256,480], not '3'"),
        (["--precision", "16"], "precision does not fit: 16-bit arithmetic is --precision bf16 here, with float32 weights"),
        (["--device", "gpu"], "device does not fit: a GPU is --device cuda here; CUDA_VISIBLE_DEVICES chooses which"),
        (["--optimizer", "sgd"], "optimizer does not fit: give its keys one by one, as in --optimizer.KEY VALUE"),
        (["--loss", "bce"], "loss does not fit: it is --loss binary-cross-entropy here"),
        (["--loss", "CE"], "loss does not fit: it is --loss cross-entropy here"),
        (["--checkpoint", "x.pt"], "KEY VALUE (see --help-all); to start from its weights, give --init PATH"),
        (["--freeze-bn"], "--freeze-bn needs a value: --freeze-bn true, or --freeze-bn false"),
        (["--compile", "--seed", "1"], "--compile needs a value: --compile true, or --compile false"),
        (["--iterations"], "--iterations needs a value: give a whole number behind it"),
        (["--init-exclude"], "--init-exclude needs a value: give a list of words"),
        (["--config"], "--config needs a value: see --help-all"),
        (["--ietrations", "3"], "--ietrations is not an option: did you mean '--iterations'"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_answered_in_words(words: list[str], sentence: str) -> None:
    said = refusal(*words)
    assert sentence in said
    assert not re.search(r"Union|Literal|NoneType|<class|\bint\b|null", said)


# Help


def help_of(launcher: Any, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        launcher.main(list(words))
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("launcher", [local, slurm, ray_train], ids=lambda module: module.__name__)
def test_help_shows_few_options_and_help_all_every_one(launcher: Any, capsys: pytest.CaptureFixture[str]) -> None:
    short, full = help_of(launcher, capsys, "--help"), help_of(launcher, capsys, "--help-all")
    shown = set(re.findall(r"^  (--[\w.-]+)", short, re.MULTILINE))
    assert 10 <= len(shown) <= 22 and "--help-all" in shown
    typed = commands.commands()[launcher.__name__]
    options = {
        name for action in commands.parsers_of(launcher.__name__)[typed]._actions for name in action.option_strings
    }
    assert {name.replace("-", "_") for name in shown} <= {name.replace("-", "_") for name in options}
    for text in (short, full):
        assert not re.search(r"--[\w.-]*_|Union|Literal|NoneType|type:|default: null|\bNone\)|ITEM", text)
        assert max(map(len, text.splitlines())) <= 120
    leaves = [key for key in key_names() if not any(other.startswith(f"{key}.") for other in key_names())]
    listed = set(re.findall(r"^  (?:-\w, )?(--[\w.-]+)", full, re.MULTILINE))
    assert not (missing := {f"--{key.replace('_', '-')}" for key in leaves} - listed), missing


def test_the_first_options_say_what_holds_without_a_config() -> None:
    """Their defaults are written by hand: configs/imagenet.yaml has them."""
    config = read()
    for option in FIRST:
        key = option.name.removeprefix("--").replace("-", "_")
        value = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value is not None and (default := re.search(r"\(default: ([\w./]+)\)", option.text)):
            assert str(value) == default[1], option
    assert {option.name for option in LAST} == {"--print-config", "--help-all"}


def test_help_all_shows_the_values_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(
        help_of(local, capsys, "--config", str(CONFIGS / "demo.yaml"), "--batch", "96", "--help-all").split()
    )
    assert "over all ranks together (here 96)" in text and "how many updates the run makes (here 400)" in text
    text = " ".join(help_of(local, capsys, "--help-all").split())
    assert "bf16 autocast (here bf16)" in text and "(a whole number, or rank; here 32)" in text


@pytest.mark.parametrize("command", ["launch/local.py", "launch/slurm.py", "launch/ray_train.py", "-m pipeline.train"])
def test_help_imports_nothing_that_takes_seconds(command: str) -> None:
    heavy = "torch ray numpy jsonargparse nvidia.dali submitit mlflow"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith("usage: python ")
    assert "pipeline.run.help" in imported and not imported & set(heavy.split())


# One MLflow experiment per recipe


def test_a_recipe_without_experiment_is_its_own(tmp_path: Path) -> None:
    own = tmp_path / "flowers.yaml"
    own.write_text("arch: resnet18\n")
    assert read().tracking.experiment == "imagenet"
    assert read("--config", str(own)).tracking.experiment == "flowers"
    assert read(f"--config={own}", "--tracking.experiment", "mine").tracking.experiment == "mine"
    own.write_text("arch: resnet18\ntracking: {experiment: ours}\n")
    assert read("--config", str(own)).tracking.experiment == "ours"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_names_its_experiment(path: Path) -> None:
    values = yaml.safe_load(path.read_text()) or {}
    if "arch" in values:
        assert values["tracking"]["experiment"] == path.stem.split("_")[0]
