"""`--scale-batch F`, weak scaling (contract 4): the same recipe with mini-batches F times as large.

By the linear scaling rule (Goyal et al. 2017, Accurate, Large Minibatch SGD, section 2.1): learning rates times F with a
linear warm-up, everything counted in iterations divided by F, so that the images seen stay the same.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.base.command import UserError

if TYPE_CHECKING:
    from pipeline.run.config import Config

WARMUP_SHARE = Fraction(5, 90)  # of the run, where the recipe has no warm-up: 5 of 90 epochs (Goyal et al. 2017, 2.2)
TRIED = range(2, 65)  # factors that a refusal looks through for those that would do


def read_factor(text: str) -> Fraction:
    """`8`, `0.5` or `1/2` as a number above 0. Raises UserError."""
    try:
        factor = Fraction(text)
    except (ValueError, ZeroDivisionError):
        factor = Fraction(0)
    if factor <= 0:
        raise UserError(f"--scale-batch is '{text}': give a number above 0, such as 8")
    return factor


def scale_batch(config: Config, factor: Fraction) -> Config:
    """`config` with mini-batches `factor` times as large; see the module. Raises UserError where it does not come out even.

    The moving average of the weights keeps its span in images. Checkpoint periods are rounded: they change nothing.
    """
    counts = _counts(config)
    if uneven := [name for name, value in counts if not _comes_out(name, value, factor)]:
        even = [n for n in TRIED if all(_comes_out(name, value, Fraction(n)) for name, value in counts)]
        first = dict(counts)[uneven[0]]
        raise UserError(
            f"--scale-batch {float(factor):g} does not come out even: {uneven[0]} {first} cannot be "
            f"{'multiplied' if uneven[0] == 'batch' else 'divided'} by it; of the whole numbers to {TRIED[-1]} "
            f"{', '.join(map(str, even)) if even else 'none'} would do"
        )

    def fewer(iterations: int) -> int:
        return int(iterations / factor)

    def period(iterations: int) -> int:
        return max(1, round(iterations / factor))

    schedule, checkpoint, rate = config.schedule, config.checkpoint, float(factor)
    warmup = fewer(schedule.warmup_iterations)
    if factor > 1 and not warmup:
        warmup = round(fewer(config.iterations) * WARMUP_SHARE)
    return replace(
        config,
        batch=int(config.batch * factor),
        batch_scale=config.batch_scale * rate,
        iterations=fewer(config.iterations),
        ema_decay=config.ema_decay**rate,
        augment=replace(
            config.augment,
            stages=tuple(replace(stage, until=fewer(stage.until)) for stage in config.augment.stages),
        ),
        optimizer=replace(config.optimizer, lr=config.optimizer.lr * rate),
        schedule=replace(
            schedule,
            steps=tuple(fewer(step) for step in schedule.steps),
            warmup_iterations=warmup,
            start_lr=None if schedule.start_lr is None else schedule.start_lr * rate,
        ),
        evaluation=replace(config.evaluation, every=fewer(config.evaluation.every)),
        checkpoint=replace(
            checkpoint,
            every=period(checkpoint.every),
            keep_every=None if checkpoint.keep_every is None else period(checkpoint.keep_every),
        ),
    )


def _counts(config: Config) -> list[tuple[str, int]]:
    """What the factor has to leave whole, by name."""
    named = [
        ("batch", config.batch),
        ("iterations", config.iterations),
        ("evaluation.every", config.evaluation.every),
        ("schedule.warmup_iterations", config.schedule.warmup_iterations),
    ]
    named += [(f"schedule.steps[{n}]", step) for n, step in enumerate(config.schedule.steps)]
    return named + [(f"augment.stages[{n}].until", stage.until) for n, stage in enumerate(config.augment.stages)]


def _comes_out(name: str, value: int, factor: Fraction) -> bool:
    return (value * factor if name == "batch" else value / factor).denominator == 1
