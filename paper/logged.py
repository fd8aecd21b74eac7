"""The val errors that a run logged itself at its end: they stand in for a test until one is made."""

from __future__ import annotations

import math
from pathlib import Path

from paper.evidence import Measured
from paper.state import RunState
from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, METRICS
from pipeline.data.dataset import Dataset
from pipeline.evaluation.names import Weights
from pipeline.run.folder import trained_on
from pipeline.run.options import load
from pipeline.tracking import read_metrics

Z95 = 1.959964  # standard normal quantile of a two-sided 95% interval
VAL_KINDS: dict[Weights, str] = {"final": "val", "recomputed-bn": "val_recomputed_bn", "ema": "val_ema"}


def logged_errors(state: RunState, weights: Weights) -> Measured | None:
    """The errors of the centre crop on val that a finished run logged at its end, with Wilson's intervals; else None.

    They need the dataset folder, which says on how many images they are counted.
    """
    if state.kind != "finished":
        return None
    wanted = (VAL_KINDS[weights], state.config.iterations)
    records = read_metrics(state.folder / METRICS)
    values = [record.values for record in records if (record.kind, record.iteration) == wanted]
    images = _val_images(state.folder)
    if not values or images is None:
        return None
    figures = {name: values[0][name] for name in ("top1_error", "top5_error")}
    intervals = {name: wilson_interval(round(error * images / 100), images) for name, error in figures.items()}
    return Measured(figures=figures, intervals=intervals, images=images, logged=True)


def wilson_interval(wrong: int, images: int) -> tuple[float, float]:
    """Wilson's 95% score interval of an error rate, percent (Wilson 1927), where only the count is known."""
    share, z2 = wrong / images, Z95**2
    middle = share + z2 / (2 * images)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    low, high = (100 * (middle + sign * half) / (1 + z2 / images) for sign in (-1, 1))
    return max(0.0, low), min(100.0, high)


def _val_images(run: Path) -> int | None:
    try:
        dataset = Dataset(load(run / CONFIG).data)
        return len(dataset.split("val")) if dataset.sha256 == trained_on(run) else None
    except (UserError, OSError):
        return None
