"""Numbers that are computed from metrics.jsonl and never stood there, and how MLflow shows numbers.

metrics.jsonl keeps every digit, because runs are compared by it to the bit. `epoch` and `seconds_left` follow from the
config and from what stands there, so they are computed where they are shown: MLflow and launch/status.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

SIGNIFICANT, DECIMALS_OF_ERRORS, DIGITS_OF_PARAMETERS = 6, 4, 12


def epoch(iteration: int, batch: int, images: int) -> float:
    """How often a training has seen its `images` after `iteration` updates of `batch` images each."""
    return iteration * batch / images


def epoch_of(iteration: int, iterations: int, batch: int, images: int) -> str:
    """`3.2 of 90`: the epoch of `iteration`, and how many a training of `iterations` updates has, with equally many decimals.

    One decimal; below 10 epochs as many as give the whole three digits: `0.89 of 1.78`.
    """
    whole = epoch(iterations, batch, images)
    decimals = max(1, 2 - math.floor(math.log10(whole)))
    # The whole goes without zeros at its end: 90, not 90.0.
    return f"{epoch(iteration, batch, images):,.{decimals}f} of {float(f'{whole:.{decimals}f}'):,.12g}"


def seconds_left(iteration: int, iterations: int, batch: int, images_per_second: float) -> float:
    """The seconds that a training of `iterations` updates takes from `iteration` on, at its present rate."""
    return (iterations - iteration) * batch / images_per_second


def derived(
    iteration: int, rate: float | None, *, iterations: int | None, batch: int | None, images: int | None
) -> Iterator[tuple[str, float]]:
    """Yield `epoch` and `seconds_left` (whole seconds) of a log point, where what they need is known.

    rate: images per second in the interval before. images: those of the training split.
    """
    if batch and images:
        yield "epoch", epoch(iteration, batch, images)
    if batch and iterations and rate:
        yield "seconds_left", float(round(seconds_left(iteration, iterations, batch, rate)))


def rounded(name: str, value: float) -> float:
    """Return a metric as MLflow shows it: errors (%) to 4 decimals, others to 6 significant digits, counts as they are."""
    if not math.isfinite(value) or value.is_integer():
        return value
    return round(value, DECIMALS_OF_ERRORS) if name.endswith("error") else float(f"{value:.{SIGNIFICANT}g}")


def tidy(text: str) -> str:
    """Return a parameter as MLflow shows it: floats in JSON to 12 significant digits (0.30000000000000004: 0.3)."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(shorter) if (shorter := _shorter(value)) != value else text


def _shorter(value: Any) -> Any:
    if isinstance(value, list):
        return [_shorter(one) for one in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS_OF_PARAMETERS}g}")
    return value
