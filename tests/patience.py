"""How long tests wait: generous limits, which one knob stretches all together.

A limit is there to end a test that hangs, never to judge a speed. `limit(60)` is a minute times PATIENCE, an environment
variable. Where it is not set, it is measured at the session's start: 2 on a quiet machine, more on a slow or busy one.
What a test asserts is what happened, not when.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from statistics import median

from pipeline.base.command import UserError

KNOB = "PATIENCE"
QUIET_SECONDS = 0.12  # what `fixed_work` takes alone on a core of the machine that the limits were chosen on
# Of a measured factor: other work may come later; a larger one would be a disturbed measurement
LEAST, MOST = 2.0, 20.0


def set_patience() -> float:
    """Measure the factor and leave it to this process and its children, unless PATIENCE gives it.

    Raises UserError where PATIENCE is no number.
    """
    if KNOB not in os.environ:
        os.environ[KNOB] = f"{_measured():.2f}"
    try:
        assert math.isfinite(float(os.environ[KNOB]))
    except (ValueError, AssertionError):
        raise UserError(f"PATIENCE is '{os.environ[KNOB]}': give a number, such as 5, or leave it out") from None
    return patience()


def patience() -> float:
    """The factor, at least 1."""
    return max(1.0, float(os.environ.get(KNOB, "1")))


def limit(seconds: float) -> float:
    """`seconds` of a quiet machine as this machine's."""
    return seconds * patience()


def _measured() -> float:
    """Wall time of some work over that of a quiet machine: a slow processor and a crowded one both count."""
    return min(MOST, max(LEAST, fixed_work(time.perf_counter) / QUIET_SECONDS))


def fixed_work(clock: Callable[[], float]) -> float:
    """Seconds by `clock` that always the same work takes, the median of three times."""
    taken = []
    for _ in range(3):
        started, total = clock(), 0
        for number in range(2_000_000):
            total += number
        taken.append(clock() - started)
    return median(taken)
