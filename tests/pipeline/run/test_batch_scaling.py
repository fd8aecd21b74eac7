"""--scale-batch against the linear scaling rule of Goyal et al. 2017, written out by hand, behind every launcher."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig, ResizeStage
from pipeline.run.batch_scaling import read_factor, scale_batch
from pipeline.run.config import Config, differences, to_plain, trajectory
from pipeline.run.options import parse
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.schedule import Schedule, ScheduleConfig
from tests.helpers import ROOT

OPTIONS = ["--iterations", "9000", "--batch", "64", "--schedule.kind", "cosine", "--optimizer.lr", "0.05"]


def test_every_launcher_scales_alike() -> None:
    """The resolved values, written out; the factor beside them; and what is not scaled is as it was."""
    from launch import local, ray_train, slurm

    for launcher in (local, slurm, ray_train):
        parser = launcher.COMMAND_LINE.training_parser()
        base, _ = parse(parser, OPTIONS)
        scaled, own = parse(parser, [*OPTIONS, "--scale-batch", "4"])
        assert not hasattr(own, "scale_batch")
        assert differences(to_plain(base), to_plain(scaled)) == [
            "batch: 64 -> 256",
            "batch_scale: 1.0 -> 4.0",
            "checkpoint.every: 5000 -> 1250",
            "evaluation.every: 5000 -> 1250",
            "iterations: 9000 -> 2250",
            "optimizer.lr: 0.05 -> 0.2",
            "schedule.warmup_iterations: 0 -> 125",  # 5 of 90 epochs
        ]
        assert scaled.iterations * scaled.batch == base.iterations * base.batch


def test_the_schedule_is_the_same_in_images() -> None:
    """After the same number of images the learning rate is F times as high, warm-up and drops included."""
    base = Config(
        iterations=800,
        batch=32,
        ema_decay=0.99,
        augment=AugmentConfig(stages=(ResizeStage(until=400, crop=96, short_side=(112, 160)),)),
        schedule=ScheduleConfig(kind="steps", steps=(400, 600), warmup_iterations=80, start_lr=0.01),
        checkpoint=CheckpointConfig(every=30, keep_every=100),
    )
    base = scale_batch(base, Fraction(1))
    scaled = scale_batch(base, Fraction(8))
    schedules = [Schedule(one.schedule, one.optimizer.lr, one.iterations) for one in (base, scaled)]
    assert [one.lr(0) for one in schedules] == pytest.approx([0.01, 0.08])
    for one in schedules:
        one.observe_train_error(0.0)
    for done in range(8, 801, 8):  # iterations done at batch 32
        slow, fast = schedules[0].lr(done - 1), schedules[1].lr(done // 8 - 1)
        assert fast == pytest.approx(8 * slow), done
    assert scaled.augment.stages[0].until * scaled.batch == 400 * 32
    assert scaled.ema_decay == pytest.approx(0.99**8)
    assert (scaled.checkpoint.every, scaled.checkpoint.keep_every) == (4, 12)


@pytest.mark.parametrize(("name", "millions"), [("imagenet", 153.6), ("imagenet_fast", 114.7), ("imagenet_a3", 128.1)])
def test_recipes_scale_and_see_the_images_their_heads_say(name: str, millions: float) -> None:
    for factor in ("1", "2", "4", "8"):
        config, _ = parse(slurm_options(), ["--config", str(ROOT / f"configs/{name}.yaml"), "--scale-batch", factor])
        assert config.iterations * config.batch / 1e6 == pytest.approx(millions, abs=0.05)


def test_scaling_twice_or_by_less_than_one() -> None:
    base = Config(iterations=60_000, schedule=ScheduleConfig(kind="cosine", warmup_iterations=600))
    assert scale_batch(scale_batch(base, Fraction(2)), Fraction(4)) == scale_batch(base, Fraction(8))
    assert scale_batch(scale_batch(base, Fraction(4)), Fraction("1/4")) == base
    assert read_factor("0.5") == read_factor("1/2") == Fraction(1, 2)


def test_lambs_rate_grows_by_the_square_root() -> None:
    scaled, _ = parse(slurm_options(), [*OPTIONS, "--optimizer.kind", "lamb", "--scale-batch", "4"])
    assert (scaled.optimizer.lr, scaled.batch, scaled.batch_scale) == (0.05 * 2, 256, 4.0)


def test_the_record_alone_changes_nothing() -> None:
    """A run continues with its own config.yaml, which holds the resolved values: they are not scaled again."""
    scaled, _ = parse(slurm_options(), [*OPTIONS, "--scale-batch", "4"])
    values = to_plain(scaled)
    again, _ = parse(slurm_options(), [f"--{key}={values[key]}" for key in ("iterations", "batch", "batch_scale")])
    assert (again.iterations, again.batch, again.batch_scale) == (2250, 256, 4.0)
    assert "batch_scale" not in trajectory(scaled)


def slurm_options():
    from launch import slurm

    return slurm.COMMAND_LINE.training_parser()


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        ("7", "iterations 9000 cannot be divided by it; of the whole numbers to 64 2, 4, 5, 8, 10"),
        ("0.3", "batch 64 cannot be multiplied"),
        ("1/128", "batch 64 cannot be multiplied"),
        ("0", "give a number above 0"),
        ("many", "give a number above 0"),
    ],
)
def test_factors_that_do_not_come_out_even(factor: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(slurm_options(), [*OPTIONS, "--scale-batch", factor])
