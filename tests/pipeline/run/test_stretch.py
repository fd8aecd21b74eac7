"""Stretching a schedule: a config field says what it counts, and both commands that stretch a schedule follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from paper.spec import shorten
from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, ResizeStage
from pipeline.run.batch_scaling import scale_batch
from pipeline.run.config import Config
from pipeline.run.stretch import counts, stretch
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class LongerSchedule(ScheduleConfig):
    """A section with three new keys. No other place knows them."""

    cool_down: int = field(default=6000, metadata={"unit": "iterations"})
    look_every: int = field(default=50, metadata={"unit": "iterations", "period": True, "rounded": True})
    probe_images: int = field(default=1000, metadata={"unit": "images"})


NEW = Config(schedule=LongerSchedule())


def new_keys(config: Config) -> tuple[int, int, int]:
    schedule = config.schedule
    assert isinstance(schedule, LongerSchedule)
    return schedule.cool_down, schedule.look_every, schedule.probe_images


def test_both_commands_stretch_a_new_key() -> None:
    """Larger mini-batches see the same images in fewer updates; a rehearsal shortens all, periods to 10 at least."""
    assert new_keys(scale_batch(NEW, Fraction(4))) == (1500, 12, 1000)
    assert new_keys(shorten(NEW, 0.05)) == (300, 10, 50)


def test_a_new_key_must_come_out_even_unless_it_is_a_period_that_may_be_rounded() -> None:
    odd = Config(schedule=LongerSchedule(cool_down=6001, look_every=51))
    with pytest.raises(UserError, match=r"schedule\.cool_down 6001 cannot be divided"):
        scale_batch(odd, Fraction(8))


def test_what_a_config_counts() -> None:
    config = Config(
        augment=AugmentConfig(stages=(ResizeStage(until=400, crop=96, short_side=(112, 160)),)),
        schedule=ScheduleConfig(kind="steps", steps=(500, 800)),
        checkpoint=CheckpointConfig(keep_every=70),
    )
    assert {count.key: (count.value, count.unit) for count in counts(config)} == {
        "iterations": (600_000, "iterations"),
        "recompute_bn_images": (51_200, "images"),
        "augment.stages[0].until": (400, "iterations"),
        "schedule.steps[0]": (500, "iterations"),
        "schedule.steps[1]": (800, "iterations"),
        "schedule.warmup_iterations": (0, "iterations"),
        "evaluation.every": (5000, "iterations"),
        "checkpoint.every": (5000, "iterations"),
        "checkpoint.keep_every": (70, "iterations"),
        "tracking.log_every": (100, "updates"),
    }
    assert {count.key for count in counts(config) if count.rounded} == {"checkpoint.every", "checkpoint.keep_every"}
    assert "checkpoint.keep_every" not in {count.key for count in counts(Config())}, "null counts nothing"


def test_a_misspelt_role_is_a_programming_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Section:
        every: int = field(default=1, metadata={"unit": "iterations", "preiod": True})

    with pytest.raises(TypeError, match="preiod"):
        stretch(Section(), 0.5, "iterations")
