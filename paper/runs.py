"""How a run was trained, from its run folder on every call: hardware, device hours, images/s, deviations from a recipe."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.base.layout import METRICS
from pipeline.evaluation.figures import Curve
from pipeline.run.config import Config, differences, trajectory
from pipeline.run.folder import read_facts as read_run_file
from pipeline.tracking import Record, mlflow_run_id, read_metrics
from pipeline.tracking.state import Delivered


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware of one attempt. device: the GPU's name, or "cpu"; threads: per process."""

    started: float  # seconds since 1970
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

    unit_hours: GPU hours, or CPU core hours, of the updates that led to the weights: without evaluations, checkpoints and
    updates lost to a kill. images_per_second: the median of the log points. mlflow: the MLflow run's page where MLflow is a
    server, else its id; None where MLflow does not know the run.
    """

    attempts: tuple[Hardware, ...]
    images_per_second: float | None
    unit_hours: float | None
    mlflow: str | None

    @property
    def hardware(self) -> str:
        """The kinds of hardware of all attempts, once each."""
        return ", then ".join(dict.fromkeys(attempt.text for attempt in self.attempts)) or "unknown"

    @property
    def unit(self) -> str:
        return "CPU core hours" if all(attempt.device == "cpu" for attempt in self.attempts) else "GPU hours"

    @property
    def commit(self) -> str:
        """The commit of the last attempt, short; `unknown` where run.json does not have it."""
        commit = self.attempts[-1].commit if self.attempts else "unknown"
        return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def read_facts(folder: Path, batch: int) -> RunFacts:
    """The facts of a run folder whose mini-batches are `batch` images. Raises UserError for a damaged metrics.jsonl."""
    attempts = _attempts(folder)
    train = [record for record in read_metrics(folder / METRICS) if record.kind == "train"]
    rates = [rate for record in train if (rate := record.values.get("images_per_second"))]
    return RunFacts(
        attempts=attempts,
        images_per_second=statistics.median(rates) if rates else None,
        unit_hours=_unit_hours(train, attempts, batch) if rates and attempts else None,
        mlflow=_mlflow(folder),
    )


def deviations(config: Config, recipe: Config) -> list[str]:
    """`key: the paper's -> the run's` for every value that affects what the run computes, log intervals left out.

    config: the run's. recipe: the paper's, but for the precision, which may be bf16 for speed: the paper trained in float32.
    """
    wanted = trajectory(replace(recipe, precision="float32"))
    quiet = ("tracking.",) if recipe.schedule.kind == "plateau" else ("tracking.", "evaluation.every:")
    return [change for change in differences(wanted, trajectory(config)) if not change.startswith(quiet)]


def curves(net: str, records: Sequence[Record]) -> list[Curve]:
    """Training and val top-1 error of a run over its iterations; without points that are not a number."""
    lines = []
    for kind, record_kind in (("train", "train"), ("test", "val")):
        points = [
            (record.iteration, record.values["top1_error"])
            for record in records
            if record.kind == record_kind and np.isfinite(record.values.get("top1_error", np.nan))
        ]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            lines.append(Curve(net=net, kind=kind, x=x, y=y))  # type: ignore[arg-type]
    return lines


def _attempts(folder: Path) -> tuple[Hardware, ...]:
    """The attempts in run.json; none where the file is missing or of another form."""
    try:
        return tuple(
            Hardware(
                started=datetime.fromisoformat(attempt["started"]).timestamp(),
                device=str(attempt["device"]),
                processes=int(attempt["world_size"]),
                threads=int(attempt["threads"]),
                commit=str(attempt["git_commit"]),
            )
            for attempt in read_run_file(folder)["attempts"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _unit_hours(train: Sequence[Record], attempts: Sequence[Hardware], batch: int) -> float:
    """The hours of the updates before each log point, at its rate, on the hardware of the attempt that logged it."""
    seconds = 0.0
    for before, record in pairwise([Record("train", 0, 0, {}), *train]):
        rate = record.values.get("images_per_second")
        if rate:
            begun = [attempt for attempt in attempts if attempt.started * 1000 <= record.time] or attempts[:1]
            seconds += (record.iteration - before.iteration) * batch / rate * begun[-1].units
    return seconds / 3600


def _mlflow(folder: Path) -> str | None:
    identity, delivered = mlflow_run_id(folder), Delivered.read(folder)
    if identity and delivered.uri.startswith("http"):
        return f"{delivered.uri.rstrip('/')}/#/experiments/{delivered.experiment_id}/runs/{identity}"
    return identity
