"""`--scale-batch F`, weak scaling (contract 4): the same recipe with mini-batches F times as large.

By the linear scaling rule (Goyal et al. 2017, Accurate, Large Minibatch SGD, section 2.1): learning rates times F with a
linear warm-up, everything counted in iterations divided by F, so that the images seen stay the same. LAMB's learning rates
are multiplied by the square root of F (You et al. 2020, Large Batch Optimization for Deep Learning, section 4).
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from pipeline.base.command import UserError
from pipeline.base.ratios import read_ratio
from pipeline.run.config import Config
from pipeline.run.stretch import counts, stretch

WARMUP_SHARE = Fraction(5, 90)  # of the run, where the recipe has no warm-up: 5 of 90 epochs (Goyal et al. 2017, 2.2)
MOST = 1_000_000  # a factor; a larger one is a slip of the hand
TRIED = range(2, 65)  # the factors from which a refusal names those that fit


def read_factor(text: str) -> Fraction:
    """`8`, `0.5` or `1/2` as a number above 0, up to MOST. Raises UserError."""
    factor = read_ratio(text)
    if factor is None or factor > MOST:
        raise UserError(f"--scale-batch is '{text}': give a number above 0, such as 8, and at most {MOST:,}")
    return factor


def scale_batch(config: Config, factor: Fraction) -> Config:
    """`config` with mini-batches `factor` times as large; see the module. Raises UserError for an uneven factor.

    The moving average of the weights keeps its span in images. Periods that change nothing (checkpoints) are rounded.
    """
    _check_even(config, factor)
    return enlarge_batch(stretch(config, 1 / factor, "iterations"), factor)


def enlarge_batch(fewer: Config, factor: Fraction) -> Config:
    """A config whose counts of iterations are scaled already, with mini-batches `factor` times as large. Raises UserError."""
    if (fewer.batch * factor).denominator != 1:
        raise UserError(
            f"--scale-batch {float(factor):g} does not come out even: batch {fewer.batch} cannot be multiplied"
        )
    grown = float(factor)
    rate = grown**0.5 if fewer.optimizer.kind == "lamb" else grown
    schedule = fewer.schedule
    warmup = schedule.warmup_iterations
    if factor > 1 and not warmup:
        warmup = round(fewer.iterations * WARMUP_SHARE)
    start_lr = None if schedule.start_lr is None else schedule.start_lr * rate
    return replace(
        fewer,
        batch=int(fewer.batch * factor),
        batch_scale=fewer.batch_scale * grown,
        ema_decay=fewer.ema_decay**grown,
        optimizer=replace(fewer.optimizer, lr=fewer.optimizer.lr * rate),
        schedule=replace(schedule, warmup_iterations=warmup, start_lr=start_lr),
    )


def _check_even(config: Config, factor: Fraction) -> None:
    """Raise UserError where the batch or a count of iterations is no whole number after scaling by `factor`."""
    exact = [one for one in counts(config) if one.unit == "iterations" and not one.rounded]
    exact.sort(key=lambda one: ("." in one.key, "[" in one.key, one.key))  # the run's length first, items of lists last

    def uneven(factor: Fraction) -> list[str]:
        """The reasons against a factor, the first of which a refusal names."""
        odd = [f"{one.key} {one.value} cannot be divided" for one in exact if one.value % factor]
        return odd if (config.batch * factor).denominator == 1 else [f"batch {config.batch} cannot be multiplied", *odd]

    if found := uneven(factor):
        even = ", ".join(str(one) for one in TRIED if not uneven(Fraction(one))) or "none"
        raise UserError(
            f"--scale-batch {float(factor):g} does not come out even: {found[0]} by it; "
            f"of the whole numbers to {TRIED[-1]} {even} would do"
        )
