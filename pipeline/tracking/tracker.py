"""What a run says of itself: metrics to metrics.jsonl, and from there to MLflow."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.base.layout import METRICS
from pipeline.base.lease import FencedError, is_held
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.delivery import flatten
from pipeline.tracking.journal import Journal
from pipeline.tracking.process import FeederProcess
from pipeline.tracking.state import (
    Status,
    Wanted,
    artifact_key,
    artifact_version,
    read_delivered,
    read_wanted,
    write_wanted,
)

# A run that was told to stop has little time left to do so, and its next start delivers what is missing.
KILLED_SECONDS = 5.0


class Tracker:
    """Records nothing: what every rank but the main one holds. Use as a context manager."""

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        """Record the metrics `values` of `kind` (train, val ...) after `iteration` updates, once.

        In MLflow they are KIND/NAME at step `iteration`. What is recorded already (a run that goes on from a checkpoint
        repeats what came after it) is skipped.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Have MLflow keep a copy of a file, in `folder` of the MLflow run; again where the file has changed."""

    def finish(self, status: Status) -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED. A run that is closed without it is KILLED."""

    def fsync(self) -> None:
        """Bring all metrics to the disk; raises OSError where it does not take them. Before a checkpoint is published."""

    def close(self) -> None:
        """Wait, at most `close_seconds` (5 where the run was KILLED), until MLflow has everything; say what it has not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RunTracker(Tracker):
    """Records one run; made by open_tracker."""

    def __init__(self, folder: Path, config: TrackingConfig, wanted: Wanted) -> None:
        self.folder, self.wanted, self.close_seconds = folder, wanted, config.close_seconds
        self.journal = Journal(folder / METRICS)
        write_wanted(folder, wanted)
        self.feeder = FeederProcess(folder, config.close_seconds) if config.mlflow else None

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.journal.append(kind, iteration, values)
        if self.feeder:
            self.feeder.ensure()

    def artifact(self, path: Path, folder: str = "") -> None:
        name = _artifact_name(self.folder, path)
        if [name, folder] not in self.wanted.artifacts:
            self._change(artifacts=[*self.wanted.artifacts, [name, folder]])

    def finish(self, status: Status) -> None:
        self._change(status=status, ended=time.time_ns() // 1_000_000)

    def fsync(self) -> None:
        self.journal.fsync()

    def close(self) -> None:
        if self.wanted.status == "RUNNING":
            self.finish("KILLED")
        try:
            self.journal.close()
        except OSError as error:
            print(
                f"{self.journal.path} lacks its last {len(self.journal.pending)} lines ({error.strerror})",
                file=sys.stderr,
            )
        finally:
            if self.feeder:
                killed = self.wanted.status == "KILLED"
                self.feeder.close(min(self.close_seconds, KILLED_SECONDS) if killed else self.close_seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, FencedError):
            self._abandon()
            return
        if kind is not None and issubclass(kind, Exception) and self.wanted.status == "RUNNING":
            self.finish("FAILED")
        self.close()

    def _abandon(self) -> None:
        """Write nothing more and wait for nobody: the run folder belongs to a later attempt, and MLflow to its feeder."""
        self.journal.pending.clear()
        self.journal.close()
        if self.feeder and self.feeder.process:
            self.feeder.process.kill()

    def _change(self, **changes: Any) -> None:
        self.wanted = replace(self.wanted, **changes)
        try:
            write_wanted(self.folder, self.wanted)
        except OSError as error:  # a full disk must not end the run
            print(f"MLflow will not be told of {', '.join(changes)} of this run: {error}", file=sys.stderr)


def _artifact_name(folder: Path, path: Path) -> str:
    """A file as tracking.json names it: relative to the run folder where it lies in it."""
    path, home = path.resolve(), folder.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def open_tracker(
    folder: Path,
    config: TrackingConfig,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    enabled: bool = True,
) -> Tracker:
    """Start recording the run in `folder`, or go on with it; not `enabled` (every rank but one): records nothing.

    `params` (nested or flat) and `tags` describe the run in MLflow; a parameter that differs from an earlier attempt's
    becomes a tag `changed.NAME`. Raises UserError where metrics.jsonl is damaged.
    """
    if not enabled:
        return Tracker()
    folder.mkdir(parents=True, exist_ok=True)
    before = read_wanted(folder)
    wanted = Wanted(
        key=before.key if before else uuid.uuid4().hex,
        name=name,
        experiment=config.experiment,
        uri=config.uri,
        started=before.started if before else time.time_ns() // 1_000_000,
        params=flatten(params),
        tags=dict(tags),
        artifacts=before.artifacts if before else [],
    )
    return RunTracker(folder, config, wanted)


def log_evaluations(
    folder: Path,
    config: TrackingConfig,
    iteration: int,
    evaluations: Mapping[str, Mapping[str, float]],
    artifacts: Iterable[tuple[Path, str]] = (),
) -> None:
    """Add evaluations (kind -> metrics) of the trained run in `folder` to its metrics.jsonl and, as KIND/NAME, to MLflow.

    `iteration` is the checkpoint's. Values that differ from those of an earlier evaluation are added, equal ones not.
    `artifacts`: files that MLflow is to keep, each with its folder in the MLflow run; not while the run is training,
    which alone writes what MLflow is to know. The run's status, parameters and tags stay as they are. Waits for MLflow
    as the end of a run does.
    """
    wanted = read_wanted(folder)
    if wanted is not None and not is_held(folder):
        added = [[_artifact_name(folder, path), place] for path, place in artifacts]
        write_wanted(
            folder, replace(wanted, artifacts=wanted.artifacts + [a for a in added if a not in wanted.artifacts])
        )
    journal = Journal(folder / METRICS, repair=not is_held(folder))
    for kind, values in evaluations.items():
        journal.append(kind, iteration, values, revise=True)
    journal.close()
    if config.mlflow and read_wanted(folder) is not None:
        FeederProcess(folder, config.close_seconds).close(config.close_seconds)


def is_delivered(folder: Path) -> bool:
    """Whether MLflow has every metric and artifact of the run in `folder` by now."""
    wanted, delivered = read_wanted(folder), read_delivered(folder)
    metrics = folder / METRICS
    if wanted is None or not metrics.exists():
        return True
    files = {artifact_key(path, place): folder / path for path, place in wanted.artifacts}
    sent = all(
        not file.exists() or delivered.artifacts.get(key) == artifact_version(file) for key, file in files.items()
    )
    return sent and delivered.position == metrics.stat().st_size


def log_result_run(
    folder: Path,
    config: TrackingConfig,
    *,
    name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    tags: Mapping[str, str],
    artifacts: Iterable[Path] = (),
) -> None:
    """Record a result of its own, such as an ensemble's errors, as a run in `folder`, which stands among the run folders.

    `metrics` (kind -> metrics) as in `log_evaluations`, so that members and ensembles stand in the same columns.
    Name the members in `params` and `tags`: `mlflow_run_id(folder)` gives each one's MLflow run. Calling it again with
    the same folder goes on with the same MLflow run.
    """
    with open_tracker(folder, config, name=name, params=params, tags=tags) as tracker:
        assert isinstance(tracker, RunTracker)
        for kind, values in metrics.items():
            tracker.journal.append(kind, 0, values, revise=True)
        for path in artifacts:
            tracker.artifact(path)
        tracker.finish("FINISHED")


def is_concluded(folder: Path) -> bool:
    """Whether the run in `folder` has said that it is finished (and the process beside it will have told MLflow)."""
    wanted = read_wanted(folder)
    return wanted is not None and wanted.status == "FINISHED"


def mlflow_run_id(folder: Path) -> str | None:
    """The id of the MLflow run of the run in `folder`; None where MLflow has not been told of it yet."""
    return read_delivered(folder).run_id or None
