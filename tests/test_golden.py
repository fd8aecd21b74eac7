"""What a run computes is what it was: compared with tests/golden/trajectory.json, which an earlier commit wrote.

Every other test of equal bits compares the code with itself. Weights drawn in another order or another stream of crops
would pass them all, and a run that has begun would go on under such code without a word.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.base import command
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.data.dataset import Dataset
from pipeline.run.config import TRAJECTORY
from tests.golden.record import FILE, complaint, read, rewrite
from tests.golden.runs import RECIPES, images_sha256, run_name, small_run
from tests.golden.values import CASES, SAMPLES, Made, Numbers
from tests.helpers import ROOT

REMEDY = (
    "If that is on purpose: raise TRAJECTORY in pipeline/run/config.py, run `make golden`, and say so in CHANGELOG.md"
)


def compare(name: str, made: Made) -> None:
    if found := complaint(name, read()["cases"].get(name), made):
        pytest.fail(found, pytrace=False)


@pytest.mark.parametrize("name", CASES)
def test_before_the_first_update(name: str) -> None:
    """Draws, order, views and first weights: to the bit, but for what logarithms and cosines go into."""
    compare(name, CASES[name]())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dozen_updates(recipe: str, digits: Path, tmp_path: Path) -> None:
    """A real training of one rank: losses and scores within 1e-4, so that CPUs may differ in their last bits."""
    compare(run_name(recipe), small_run(recipe, digits, tmp_path))


def test_two_ranks_compute_the_same(digits: Path, tmp_path: Path) -> None:
    """The run of configs/cifar10.yaml on two ranks, each with half of every mini-batch, against the values of one."""
    recipe = "configs/cifar10.yaml"
    compare(run_name(recipe), small_run(recipe, digits, tmp_path, ranks=2))


def test_the_digits_of_the_runs(digits: Path) -> None:
    """The runs' images are written by Pillow and libjpeg: where another version writes others, no run can be compared."""
    images = {case["inputs"].get("images_sha256") for name, case in read()["cases"].items() if "run of" in name}
    assert images == {images_sha256(Dataset(digits))}, (
        "the digits that the golden runs train on are not those of tests/golden/trajectory.json: another Pillow or "
        "scikit-learn, or a change of data_prep/; where nothing else fails, run `make golden`"
    )


def test_every_recipe_and_the_present_number_are_in_the_file() -> None:
    files = (ROOT / "configs").glob("*.yaml")
    recipes = {f"configs/{file.name}" for file in files if "arch" in (yaml.safe_load(file.read_text()) or {})}
    assert recipes == set(SAMPLES) == set(RECIPES), (
        "a recipe is missing in tests/golden: add it to SAMPLES and to RECIPES"
    )
    stored = read()
    assert stored["trajectory"] == TRAJECTORY, (
        f"pipeline/run/config.py has TRAJECTORY {TRAJECTORY}, {FILE.name} is of {stored['trajectory']}: run `make golden`"
    )
    assert stored["cases"].keys() == {*CASES, *map(run_name, RECIPES)}, "run `make golden`: cases were added or went"


def made(loss: float = 2.0, digest: str = "a", seed: int = 0, **more: str) -> Made:
    return Made({"seed": seed}, {"the losses": Numbers((1.0, loss), 1e-4), "the order": digest, **more})


def said(path: Path) -> dict[str, object]:
    return read(path)["cases"]["run"]["values"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A golden file of one case, by code of number 3."""
    assert rewrite(tmp_path / "golden.json", 3, {"run": made()})
    return tmp_path / "golden.json"


def test_what_changed_is_said_in_plain_words(file: Path) -> None:
    stored = read(file)["cases"]["run"]
    assert complaint("run", stored, made()) is None
    assert complaint("run", stored, made(loss=2.0001)) is None  # within the tolerance
    found = complaint("run", stored, made(loss=2.1, digest="b"))
    assert found and found.startswith("run: no longer what it was: the losses (number 2 of 2: 2 -> 2.1); the order. ")
    assert "What a run computes has changed" in found and REMEDY in found


def test_other_inputs_are_told_apart_from_other_code(file: Path) -> None:
    """A recipe's new seed changes the values too; what a run computes from its own values has not changed."""
    found = complaint("run", read(file)["cases"]["run"], made(loss=2.1, seed=1))
    assert found and "seed: 0 -> 1" in found and "has changed" not in found
    assert rewrite(file, 3, {"run": made(loss=2.1, seed=1)})
    assert said(file)["the losses"] == [1.0, 2.1]


@pytest.mark.parametrize("number", [2, 3])
def test_changed_values_are_not_written_under_the_same_number(
    file: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: len(rewrite(file, number, {"run": made(digest="b"), "another": made()})))
    assert stopped.value.code == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "raise TRAJECTORY" in error
    assert file.read_bytes() == before


def test_a_raised_number_takes_the_new_values(file: Path) -> None:
    assert "run: the order: changed" in rewrite(file, 4, {"run": made(loss=2.0001, digest="b")})
    assert (read(file)["trajectory"], said(file)["the order"]) == (4, "b")
    assert said(file)["the losses"] == [1.0, 2.0]  # within the tolerance: no change


def test_new_entries_need_no_new_number(file: Path) -> None:
    news = rewrite(file, 3, {"run": made(loss=2.0001, views="c"), "another run": made(loss=7.0)})
    assert "run: views: new" in news and "another run: the losses: new" in news
    assert read(file)["trajectory"] == 3 and said(file) == {"the losses": [1.0, 2.0], "the order": "a", "views": "c"}
    assert read(file)["cases"]["another run"]["values"]["the losses"] == [1.0, 7.0]
    before = file.stat().st_mtime_ns
    assert rewrite(file, 3, {"run": made(views="c"), "another run": made(loss=7.0)}) == []
    assert file.stat().st_mtime_ns == before


def test_a_config_key_that_came_later_is_no_other_input(tmp_path: Path) -> None:
    """As when a run is continued: a key that its config lacks has the value that old runs had, its default."""
    stored = read()["cases"]["order of configs/demo.yaml"]
    config = {key: value for key, value in stored["inputs"]["config"].items() if key != "label_smoothing"}
    older = {"inputs": {**stored["inputs"], "config": config}, "values": {**stored["values"], "the order": "b"}}
    now = Made(stored["inputs"], {**stored["values"], "the order": "a"})
    found = complaint("an old order", older, now)
    assert found and "an old order: no longer what it was: the order. " in found and "has changed" in found
