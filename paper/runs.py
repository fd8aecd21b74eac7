"""What a run folder says of how it was trained: hardware, device hours, images/s, and how it strays from a recipe.

All of it is read from run.json, metrics.jsonl and mlflow.json at the time of the call.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.figures import Curve
from pipeline.run.config import Config, differences, trajectory
from pipeline.run.folder import read_facts as read_run_file
from pipeline.tracking import Record, mlflow_run_id, read_metrics
from pipeline.tracking.journal import METRICS
from pipeline.tracking.state import Delivered


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one attempt ran on. device: the GPU's name, or "cpu"; threads: per process."""

    started: float  # seconds since 1970
    host: str
    launcher: str
    device: str
    processes: int
    threads: int
    commit: str

    @property
    def units(self) -> int:
        """GPUs, or CPU cores (threads) where there is no GPU."""
        return self.processes * self.threads if self.device == "cpu" else self.processes

    @property
    def text(self) -> str:
        kind = "CPU cores" if self.device == "cpu" else self.device
        return f"{self.units} {kind if self.units > 1 or self.device != 'cpu' else 'CPU core'}"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How a run was trained.

    iteration: updates that metrics.jsonl tells of. unit_hours: GPU hours, or CPU core hours, of the updates that count:
    evaluations, checkpoints and updates lost to a kill are not in it. images_per_second: the median of its log points.
    mlflow: the MLflow run's page where MLflow is a server, else its id; None where MLflow does not know it.
    """

    folder: Path
    attempts: tuple[Hardware, ...]
    iteration: int
    images_per_second: float | None
    unit_hours: float | None
    mlflow: str | None

    @property
    def hardware(self) -> str:
        """The kinds of hardware that its attempts had, once each."""
        return ", then ".join(dict.fromkeys(one.text for one in self.attempts)) or "unknown"

    @property
    def unit(self) -> str:
        return "CPU core hours" if all(one.device == "cpu" for one in self.attempts) else "GPU hours"

    @property
    def commit(self) -> str:
        """Of its last attempt, short; `unknown` where it is not recorded."""
        if not self.attempts:
            return "unknown"
        return self.attempts[-1].commit[:10] + ("-dirty" if self.attempts[-1].commit.endswith("-dirty") else "")


def read_facts(folder: Path, batch: int) -> RunFacts:
    """The facts of a run folder whose mini-batches are `batch` images. Raises UserError for a damaged metrics.jsonl."""
    records = read_metrics(folder / METRICS)
    attempts = _attempts(folder)
    train = [record for record in records if record.kind == "train"]
    rates = [rate for record in train if (rate := record.values.get("images_per_second"))]
    return RunFacts(
        folder=folder,
        attempts=attempts,
        iteration=max((record.iteration for record in train), default=0),
        images_per_second=statistics.median(rates) if rates else None,
        unit_hours=_unit_hours(train, attempts, batch) if rates and attempts else None,
        mlflow=_mlflow(folder),
    )


def deviations(config: Config, recipe: Config) -> list[str]:
    """`key: the paper's -> the run's` for every value that reaches what the run computes; how often it logs is none.

    config: the run's. recipe: the paper's, but for its precision, which may be bf16 for speed: the paper's nets were float32.
    """
    wanted, own = trajectory(replace(recipe, precision="float32")), trajectory(config)
    quiet = ("tracking.",) if recipe.schedule.kind == "plateau" else ("tracking.", "evaluation.every:")
    return [one for one in differences(wanted, own) if not one.startswith(quiet)]


def curves(net: str, records: Sequence[Record]) -> list[Curve]:
    """Training and val top-1 error of a run, x in 1e4 iterations; without what is not a number."""
    found = []
    for kind, record_kind in (("train", "train"), ("test", "val")):
        points = [
            (record.iteration / 1e4, record.values["top1_error"])
            for record in records
            if record.kind == record_kind and np.isfinite(record.values.get("top1_error", np.nan))
        ]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            found.append(Curve(net=net, kind=kind, x=x, y=y))  # type: ignore[arg-type]
    return found


def _attempts(folder: Path) -> tuple[Hardware, ...]:
    """Of run.json; none where it is missing or from other hands."""
    try:
        attempts: list[dict[str, Any]] = read_run_file(folder)["attempts"]
        return tuple(
            Hardware(
                started=datetime.fromisoformat(one["started"]).timestamp(),
                host=str(one["host"]),
                launcher=str(one["launcher"]),
                device=str(one["device"]),
                processes=int(one["world_size"]),
                threads=int(one["threads"]),
                commit=str(one["git_commit"]),
            )
            for one in attempts
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _unit_hours(train: Sequence[Record], attempts: Sequence[Hardware], batch: int) -> float:
    """Every log point's updates at its rate, on the hardware of the attempt that it was logged in."""
    seconds = 0.0
    for before, record in pairwise([Record("train", 0, 0, {}), *train]):
        rate = record.values.get("images_per_second")
        if rate:
            own = [one for one in attempts if one.started * 1000 <= record.time] or [attempts[0]]
            seconds += (record.iteration - before.iteration) * batch / rate * own[-1].units
    return seconds / 3600


def _mlflow(folder: Path) -> str | None:
    identity, delivered = mlflow_run_id(folder), Delivered.read(folder)
    if identity and delivered.uri.startswith("http"):
        return f"{delivered.uri.rstrip('/')}/#/experiments/{delivered.experiment_id}/runs/{identity}"
    return identity
