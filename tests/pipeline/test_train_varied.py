"""A training with area crops, RandAugment and erasing keeps the promise: the same bits on any ranks, and after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.augment import AugmentConfig
from pipeline.data.erasing import EraseConfig
from pipeline.data.rand_augment import RandAugmentConfig
from pipeline.evaluation.config import EvaluationConfig
from pipeline.run.config import Config
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.schedule import ScheduleConfig
from tests.pipeline.small_runs import config_of, series, train_rank, weights
from tests.ranks import run_ranks

VARIED = AugmentConfig(
    kind="area-crop", crop=32, rand_augment=RandAugmentConfig(operations=2), erase=EraseConfig(probability=0.25)
)


def varied(digits: Path, runs: Path, name: str) -> Config:
    return replace(
        config_of(digits, runs, name),
        iterations=8,
        recompute_bn_images=32,
        augment=VARIED,
        schedule=ScheduleConfig(kind="steps", steps=(6,)),
        evaluation=EvaluationConfig(every=8, short_side=36),
        checkpoint=CheckpointConfig(every=4),
    )


@pytest.mark.costly("three trainings: on one rank, on two, and the second half of it again")
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_and_a_resume_change_no_bit(digits: Path, tmp_path: Path, size: int) -> None:
    alone, together = varied(digits, tmp_path, "alone"), varied(digits, tmp_path, "together")
    assert run_ranks(1, train_rank, alone) == [0]
    assert run_ranks(size, train_rank, together) == [0] * size
    assert weights(together) == weights(alone) and series(together) == series(alone)
    middle, last = sorted((together.run_folder / "checkpoints").glob("*.pt"))
    assert middle.name.startswith("00000004")
    last.unlink()  # as if it had been killed after update 7: it goes on from checkpoint 4
    assert run_ranks(size, train_rank, together) == [0] * size
    assert weights(together) == weights(alone)
