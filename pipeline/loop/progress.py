"""How far a run has come, and the clock behind images/s. (The bar on the terminal is `pipeline.base.progress.Progress`.)"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WEIGHTS, AVERAGE, RECOMPUTED_BN = "val", "val_ema", "val_recomputed_bn"  # the kinds of val errors, as in metrics.jsonl


@dataclass(kw_only=True)
class RunProgress:
    """What a checkpoint holds of a run beside its model, optimizer and schedule.

    iteration: updates done, skipped ones included. interval: loss and wrong predictions of each update since the last log
    point, skipped ones left out. errors: the latest error of each name, percent. best: `error` (val top-1 of the weights,
    percent) and `iteration` of the best evaluation so far. evaluated: the iteration of the last evaluation of each kind.
    logged: the iteration of the last line of each kind in metrics.jsonl.
    """

    iteration: int = 0
    interval: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    errors: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    evaluated: dict[str, int] = field(default_factory=dict)
    logged: dict[str, int] = field(default_factory=dict)

    @property
    def best_iteration(self) -> int | None:
        return int(self.best["iteration"]) if self.best else None

    def take_interval(self) -> tuple[float, float] | None:
        """(loss, wrong predictions) of a mini-batch, as means since the last call; None where no update counted."""
        if not len(self.interval):
            return None
        loss, wrong = (float(mean) for mean in self.interval.mean(axis=0))
        self.interval = np.zeros((0, 2))
        return loss, wrong

    def note_val_errors(self, kind: str, top1: float, top5: float) -> None:
        """Note the val errors (percent) at this iteration."""
        suffix = kind.removeprefix(WEIGHTS)
        self.errors |= {f"val_top1{suffix}": top1, f"val_top5{suffix}": top5}
        if kind == WEIGHTS and top1 < self.best.get("error", float("inf")):
            self.best = {"error": top1, "iteration": self.iteration}

    def state_dict(self) -> dict[str, Any]:
        """All but the iteration, which a checkpoint holds elsewhere."""
        interval = torch.from_numpy(self.interval)
        noted = {"errors": self.errors, "best": self.best, "evaluated": self.evaluated, "logged": self.logged}
        return {"interval": interval, **noted}

    def load_state_dict(self, iteration: int, state: dict[str, Any]) -> None:
        self.iteration = iteration
        self.interval, self.errors, self.best = state["interval"].numpy(), state["errors"], state["best"]
        # Earlier versions, which did not save `evaluated`, made a checkpoint after the evaluations of its iteration.
        self.evaluated = state.get("evaluated", dict.fromkeys((WEIGHTS, AVERAGE), iteration))
        self.logged = state.get("logged", {})  # earlier versions did not save it


class Clock:
    """Measures the time spent on updates: evaluation and checkpoints pause it."""

    def __init__(self) -> None:
        self.updates, self.started, self.excluded, self.waited = 0, time.monotonic(), 0.0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.excluded += time.monotonic() - started

    def take(self, wait_seconds: float) -> tuple[float, int, float]:
        """(seconds, updates, seconds waited for data) since the last call."""
        now = time.monotonic()
        result = (max(now - self.started - self.excluded, 1e-9), self.updates, wait_seconds - self.waited)
        self.updates, self.started, self.excluded, self.waited = 0, now, 0.0, wait_seconds
        return result
