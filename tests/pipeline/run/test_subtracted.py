"""Trained with the mean image subtracted and tested with the mean colour, or the other way round: the run warns."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.augment import AugmentConfig, ResizeStage
from pipeline.data.dataset import Dataset
from pipeline.run.config import Config, EvaluationConfig
from pipeline.run.options import load
from pipeline.run.subtracted import unlike_means
from pipeline.train import warn_of_misfits
from tests.helpers import ROOT

SIDE = 32


def config(trained: int, tested: int | None, stages: tuple[ResizeStage, ...] = (), **more: object) -> Config:
    augment = AugmentConfig(kind="area-crop", crop=trained, stages=stages)
    evaluation = EvaluationConfig(short_side=64, crop=tested)
    return Config(augment=augment, evaluation=evaluation, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trained", "tested", "whole"), [(24, 32, "from val images alone"), (32, 40, "from training images alone")]
)
def test_crops_of_which_one_is_the_mean_images_are_warned_of(trained: int, tested: int, whole: str) -> None:
    sentence = unlike_means(config(trained, tested), SIDE)
    assert sentence is not None and whole in sentence and "--subtract mean-colour" in sentence
    assert (
        f"training images have {trained} pixels and val images {tested}, and the dataset's mean image has 32"
        in sentence
    )


@pytest.mark.parametrize(("trained", "tested"), [(32, None), (32, 32), (24, 40), (24, None)])
def test_images_from_which_the_same_is_subtracted_are_not(trained: int, tested: int | None) -> None:
    assert unlike_means(config(trained, tested), SIDE) is None


def test_the_mean_colour_is_subtracted_from_all_sizes_alike() -> None:
    assert unlike_means(config(24, 32, subtract="mean-colour"), SIDE) is None


def test_the_size_after_all_stages_counts() -> None:
    assert unlike_means(config(32, 32, (ResizeStage(until=10, crop=24),)), SIDE) is None


def test_a_run_says_it_when_it_starts(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(digits)
    assert len(dataset.statistics.mean_image) == SIDE
    warn_of_misfits(config(24, 32, batch=64, iterations=400), dataset)
    said = capsys.readouterr().err
    assert said.startswith("warning: training images have 24 pixels and val images 32") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "side"), [("imagenet", 224), ("imagenet_fast", 224), ("imagenet_a3", 224), ("cifar10", 32), ("demo", 32)]
)
def test_the_recipes_fit_their_datasets(recipe: str, side: int) -> None:
    assert unlike_means(load(Path(ROOT / f"configs/{recipe}.yaml")), side) is None
