"""--epochs: the recipe's values at another length, written out by hand, behind every launcher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch import local, ray_train, slurm
from pipeline.base.command import UserError
from pipeline.run.config import Config, differences, to_plain, to_yaml
from pipeline.run.epochs import misfits
from pipeline.run.options import load, parse, parser
from pipeline.run.preview import training_line
from pipeline.tracking.figures import epoch_of
from tests.helpers import ROOT

DEMO = ["--config", str(ROOT / "configs/demo.yaml")]
IMAGES = 1442  # of the digits' training split


def read(*words: str) -> Config:
    return parse(parser("Trains.", "python launch/local.py"), words)[0]


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*words)
    return str(caught.value)


@pytest.fixture
def demo(digits: Path) -> list[str]:
    assert json.loads((digits / "manifest.json").read_text())["splits"]["train"]["samples"] == IMAGES
    return [*DEMO, "--data", str(digits)]


def test_every_launcher_stretches_the_recipe_alike(demo: list[str]) -> None:
    """5 epochs are 5 x 1442 / 64 = 112.7 iterations, 0.2825 of the recipe's 400."""
    for launcher in (local, slurm, ray_train):
        options = launcher.COMMAND_LINE.training_parser()
        base, _ = parse(options, demo)
        fitted, own = parse(options, [*demo, "--epochs", "5"])
        assert not hasattr(own, "epochs")
        assert differences(to_plain(base), to_plain(fitted)) == [
            "checkpoint.every: 100 -> 50",  # 28, but not so often
            "evaluation.every: 100 -> 28",
            "iterations: 400 -> 113",
            "schedule.steps: [300, 370] -> [85, 105]",
            "tracking.log_every: 20 -> 10",
        ]


@pytest.mark.parametrize(("epochs", "iterations"), [("0.5", 11), ("1/2", 11), ("0.001", 1), ("1000", 22531)])
def test_the_length_is_rounded_to_the_nearest_iteration(demo: list[str], epochs: str, iterations: int) -> None:
    """0.5 x 1442 / 64 = 11.27; 1000 x 1442 / 64 = 22531.25. A longer run logs as often as the recipe does."""
    config = read(*demo, "--schedule.kind", "cosine", "--epochs", epochs)
    assert config.iterations == iterations and config.tracking.log_every == (20 if iterations > 400 else 10)


def test_half_an_iteration_is_rounded_up(demo: list[str]) -> None:
    """1.25 x 1442 / 721 = 2.5."""
    config = read(*demo, "--batch", "721", "--bn-group", "7", "--schedule.kind", "cosine", "--epochs", "1.25")
    assert config.iterations == 3


def test_the_papers_recipe_on_few_images(demo: list[str]) -> None:
    """90 epochs of 1,442 images are 507 of 600,000 iterations; BN statistics come from each image once at most."""
    recipe = ["--config", str(ROOT / "configs/imagenet.yaml"), *demo[2:]]
    config = read(*recipe, "--epochs", "90")
    assert (config.iterations, config.evaluation.every, config.checkpoint.every) == (507, 4, 50)
    assert config.recompute_bn_images == IMAGES
    assert read(*recipe, "--epochs", "90", "--recompute-bn-images", "51200").recompute_bn_images == 51_200


def test_val_errors_are_measured_once_an_epoch_at_most(demo: list[str]) -> None:
    """1,442 images are 6 mini-batches of 256. A recipe whose learning rate waits for val errors keeps its proportions."""
    recipe = ["--config", str(ROOT / "configs/imagenet.yaml"), *demo[2:], "--epochs", "90"]
    assert read(*recipe, "--schedule.kind", "cosine").evaluation.every == 6
    assert read(*recipe, "--schedule.kind", "cosine", "--evaluation.every", "2").evaluation.every == 2
    assert read(*recipe, "--schedule.kind", "cosine", "--scale-batch", "1/8").evaluation.every == 46
    assert read(*recipe, "--schedule.kind", "plateau").evaluation.every == 4


def test_the_recipes_own_length_leaves_it_as_it_is(demo: list[str]) -> None:
    """400 x 64 images in epochs: the same config, and so the same run on any number of processes and after any stop."""
    assert read(*demo, "--epochs", f"{400 * 64}/{IMAGES}") == read(*demo)


def test_values_of_the_command_line_stay(demo: list[str]) -> None:
    given = ["--schedule.steps=[50,80]", "--evaluation.every", "7", "--tracking.log-every", "3", "--checkpoint.every=9"]
    config = read(*demo, *given, "--epochs", "5")
    assert config.iterations == 113 and config.schedule.steps == (50, 80)
    assert (config.evaluation.every, config.tracking.log_every, config.checkpoint.every) == (7, 3, 9)
    stages = '--augment.stages=[{"until": 40, "crop": 24, "short_side": [26, 30]}]'
    assert read(*demo, stages, "--epochs", "5").augment.stages[0].until == 40


def test_the_images_stay_the_same_with_larger_mini_batches(demo: list[str]) -> None:
    """The recipe's own 400 iterations need not be divided: only the new length is rounded, once."""
    config = read(*demo, "--epochs", "5", "--scale-batch", "3")
    assert (config.iterations, config.batch, config.batch_scale) == (38, 192, 3.0)  # 5 x 1442 / 192 = 37.6
    assert config.optimizer.lr == pytest.approx(0.3) and config.schedule.steps == (28, 35)  # 28.5 is rounded to even
    assert config.schedule.warmup_iterations == 2  # 5 of 90 parts
    assert "batch 64 cannot be multiplied" in refusal(*demo, "--epochs", "5", "--scale-batch", "1/3")


def test_the_same_command_continues_the_run(demo: list[str], tmp_path: Path) -> None:
    """The config that a run records has the resolved values, and reading it stretches nothing again."""
    config = read(*demo, "--epochs", "5")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "config.yaml") == config == read(*demo, "--epochs=5") == read(*demo, "--max-epochs", "5")
    own = replace(config.tracking, experiment="demo")
    assert read("--config", str(tmp_path / "config.yaml")) == replace(config, tracking=own)


def test_a_remote_dataset_is_asked_for_its_manifest(
    demo: list[str], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read(*DEMO, "--data", f"file://{digits.absolute()}", "--epochs", "5").iterations == 113


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "0"], "--epochs is '0': give a number above 0, such as 90"),
        (["--epochs", "many"], "--epochs is 'many'"),
        (["--epochs", "1e400"], "--epochs is '1e400': give a number above 0, such as 90 or 0.5, and at most 1,000,000"),
        (["--epochs", "1e30"], "--epochs is '1e30': give a number above 0, such as 90 or 0.5, and at most 1,000,000"),
        (["--epochs", "nan"], "--epochs is 'nan': give a number above 0"),
        (["--epochs", "inf"], "--epochs is 'inf': give a number above 0"),
        (["--scale-batch", "1e400"], "--scale-batch is '1e400': give a number above 0, such as 8"),
        (
            ["--epochs", "5", "--scale-batch", "1e300"],
            "--scale-batch is '1e300': give a number above 0, such as 8, and at",
        ),
        (["--epochs", "5", "--iterations", "9"], "both say how long the run is: give one of them"),
        (
            ["--epochs", "5", "--data", "/none"],
            "--epochs counts the training images, and /none is not a dataset folder",
        ),
        (["--epochs", "5", "--data", "file:///none"], "--epochs counts the training images, and file:///none is not"),
        (["--epochs", "0.05"], "leaves 1 iteration here, too few for a learning rate that drops 2 times"),
    ],
)
def test_what_cannot_be_resolved_is_refused(demo: list[str], words: list[str], sentence: str) -> None:
    assert sentence in refusal(*demo, *words)


def test_a_recipe_for_far_more_images_is_warned_of() -> None:
    length, batch = misfits(Config(), 168)
    assert "each of the 168 training images 914,286 times: --epochs 90" in length
    assert "a mini-batch of 256 images is larger than the 168 training images" in batch
    assert not list(misfits(Config(), 1_281_167)) and not list(misfits(Config(iterations=1000), 256))


def test_epochs_are_shown(demo: list[str], digits: Path) -> None:
    line = training_line([*demo, "--epochs", "5"])
    assert f"{digits} (1,442 images, 10 classes), 5 epochs, into demo/runs/resnet14-seed0" in line
    assert epoch_of(72, 113, 64, IMAGES) == "3.20 of 5.02" and epoch_of(0, 600_000, 256, 1_281_167) == "0.0 of 119.9"
    assert epoch_of(450_456, 450_456, 256, 1_281_167) == "90.0 of 90"


@pytest.mark.parametrize(
    ("iterations", "batch", "images"), [(40, 64, 1442), (3, 16, 90_000), (7, 1000, 333), (64_000, 128, 7)]
)
def test_no_epoch_is_above_the_last_one(iterations: int, batch: int, images: int) -> None:
    """40 x 64 / 1442 = 1.775: it was `1.8 of 1.78`."""
    for iteration in range(max(0, iterations - 5), iterations + 1):
        at, whole = epoch_of(iteration, iterations, batch, images).replace(",", "").split(" of ")
        assert float(at) <= float(whole) and (iteration < iterations or float(at) == float(whole) > 0)
