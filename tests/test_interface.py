"""What users may type is frozen, and the files in configs/ say what they claim.

A line of tests/golden/options.txt is a promise: an option or key that appears, goes or changes is seen here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.site import Site, read_site
from paper.reading import find
from pipeline.run.config import Config, differences, to_plain, trajectory
from pipeline.run.options import load, parse, parser
from tests.golden import options
from tests.helpers import ROOT

CONFIGS = ROOT / "configs"
OTHER_FILES = ("rates.yaml", "site.yaml")  # made by bench/step.py; read by launch/slurm.py
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in OTHER_FILES)
# What imagenet.yaml sets for speed; it says what that costs and gains.
NOT_THE_PAPERS = {"precision: float32 -> bf16", "compile: False -> True", "compile_by: net -> stages"}
NOT_THE_RECIPE = NOT_THE_PAPERS | {"tracking.experiment: resnet -> imagenet"}  # what it sets apart from the defaults


def changes(frozen: Iterable[str], present: Iterable[str]) -> str:
    """A sentence for each line that is not in both; empty where they are equal."""
    frozen, present = set(frozen), set(present)
    lines = [f"new, and not in tests/golden/options.txt: {line}" for line in sorted(present - frozen)]
    lines += [f"missing, and in tests/golden/options.txt: {line}" for line in sorted(frozen - present)]
    if lines:
        lines.append(
            "A new line is a promise to users and a missing one breaks what they type. Where it is meant: "
            "python -m tests.golden.options writes the file anew, and CHANGELOG.md says so."
        )
    return "\n".join(lines)


def test_what_users_may_type_is_frozen() -> None:
    frozen = [line for line in options.FILE.read_text().splitlines() if not line.startswith("#")]
    present = options.interface()
    assert not (found := changes(frozen, present)), found
    assert frozen == present, "the lines of tests/golden/options.txt are not sorted: python -m tests.golden.options"


def test_every_kind_of_line_is_listed() -> None:
    """What lists them overlooks no command, nor the options that a config's key has the name of."""
    lines = options.interface()
    assert {
        "config: optimizer.lr",
        "config: augment.stages[].until",
        "config: precision {float32,bf16}",
        "site file: setup",
        "python -m pipeline.evaluate: --arch VALUE",
        "python -m pipeline.export: --out VALUE",
        "a config's key: --lr is --optimizer.lr",
        "a word of sbatch: --gres is --sbatch.gres",
        "python -m pipeline.submit: MEMBER (one or more)",
        "python -m pipeline.tracking open: RUNS (optional)",
        "python -m pipeline.train: the config's keys",
        "python data_prep/shard_cifar10.py: --seed VALUE",
        "python launch/local.py ... --evaluate: --procs VALUE",
        "python launch/ray_train.py: --workers VALUE",
        "python launch/slurm.py: --nodes/-N VALUE",
        "python launch/slurm_command.py: --name VALUE (required)",
        "python launch/status.py: --follow",
    } <= set(lines)
    # README's table of commands is complete; launchers have a second command line before --evaluate.
    others = {"config", "a config's key", "site file", "a word of sbatch"}
    listed = {line.partition(":")[0].partition(" ...")[0] for line in lines} - others
    table = re.findall(r"^\| `(python -m [\w.]+|\w+/\w+\.py)", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = {f"python {name}" if "/" in name else name for name in table}
    assert {re.sub(r"(tracking) \w+$", r"\1", name) for name in listed} - {"python data_prep/digits.py"} == shown


def test_a_changed_line_is_named() -> None:
    found = changes(["a: --x", "a: --z"], ["a: --x VALUE", "a: --z"]).splitlines()
    assert found[:2] == [
        "new, and not in tests/golden/options.txt: a: --x VALUE",
        "missing, and in tests/golden/options.txt: a: --x",
    ]
    assert changes(["a: --x"], ["a: --x"]) == ""


def test_imagenet_yaml_is_the_defaults() -> None:
    """The paper's numbers stand twice, in the file and in the code: they are the same."""
    written = to_plain(load(CONFIGS / "imagenet.yaml"))
    assert set(differences(to_plain(Config()), written)) == NOT_THE_RECIPE


def test_a_command_without_config_trains_the_imagenet_recipe() -> None:
    def read(*words: str) -> Config:
        return parse(parser("Trains.", "none"), words)[0]

    assert read("--arch", "resnet18") == replace(load(CONFIGS / "imagenet.yaml"), arch="resnet18")
    assert trajectory(read("--precision", "float32", "--compile", "false")) == trajectory(Config())
    demo = read("--config", str(CONFIGS / "demo.yaml"))
    assert demo == load(CONFIGS / "demo.yaml") and demo.precision == "float32" and not demo.compile


def test_every_file_of_configs_is_read_here() -> None:
    assert "imagenet.yaml" in RECIPES
    assert {path.parent for path in CONFIGS.rglob("*.y*ml")} == {CONFIGS, CONFIGS / "experiments"}
    assert not (overlooked := list(CONFIGS.rglob("*.yml"))), f"{overlooked}: the tests and commands read *.yaml"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads(name: str) -> None:
    assert load(CONFIGS / name).arch


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert find(path.stem).name == path.stem


def test_the_site_file_loads_as_it_is_and_with_every_line_taken_in(tmp_path: Path) -> None:
    text = (CONFIGS / "site.yaml").read_text()
    assert read_site(CONFIGS / "site.yaml") == {}
    whole = re.sub(r"^# (\w+:|  - |  [\w-]+:)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "site.yaml").write_text(whole)
    assert read_site(tmp_path / "site.yaml").keys() == vars(Site()).keys() - {"nodes"}
