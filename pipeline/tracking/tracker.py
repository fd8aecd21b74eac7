"""Records a run: metrics go to metrics.jsonl, and from there to MLflow."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pipeline.base.layout import METRICS
from pipeline.base.lease import FencedError, is_held
from pipeline.base.redaction import without_secrets
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.journal import Journal
from pipeline.tracking.limits import flatten
from pipeline.tracking.process import FeederProcess
from pipeline.tracking.state import Status, Wanted

# A run that was asked to stop has little time left, and its next start delivers what is missing.
KILLED_SECONDS = 5.0


class Tracker:
    """The null tracker, which records nothing, for every rank but the main one; RunTracker records. A context manager."""

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        """Record the metrics `values` of `kind` (train, val ...) after `iteration` updates, once.

        In MLflow they are KIND/NAME at step `iteration`. A record that exists already is skipped: a run that continues from
        a checkpoint repeats what it had logged after it.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Let MLflow keep a copy of a file in `folder` of the MLflow run, and a new copy whenever the file changes."""

    def finish(self, status: Status) -> None:
        """State how the run ended: FINISHED, FAILED or KILLED. A run that is closed without this call is KILLED."""

    def fsync(self) -> None:
        """Put all metrics on the disk, before a checkpoint is published; raises OSError if the disk refuses."""

    def close(self) -> None:
        """Wait, at most `close_seconds` (5 s if the run was KILLED), until MLflow has everything; print what it lacks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()


class RunTracker(Tracker):
    """Records one run; `open_tracker` makes it."""

    def __init__(self, folder: Path, config: TrackingConfig, wanted: Wanted) -> None:
        self.folder, self.wanted, self.close_seconds = folder, wanted, config.close_seconds
        self.journal = Journal(folder / METRICS)
        self._change()
        self.feeder = FeederProcess(folder, config.close_seconds) if config.mlflow else None

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.journal.append(kind, iteration, values)
        if self.feeder:
            self.feeder.ensure()

    def artifact(self, path: Path, folder: str = "") -> None:
        name = _artifact_name(self.folder, path)
        if [name, folder] not in self.wanted.artifacts:
            self._change(artifacts=[*self.wanted.artifacts, [name, folder]])

    def finish(self, status: Status, ended: int | None = None) -> None:
        self._change(status=status, ended=ended or now_in_ms())

    def fsync(self) -> None:
        self.journal.fsync()

    def close(self) -> None:
        if self.wanted.status == "RUNNING":
            self.finish("KILLED")
        try:
            self.journal.close()
        except OSError as error:
            lost = len(self.journal.pending)
            print(f"{self.journal.path} lacks its last {lost} lines ({error.strerror})", file=sys.stderr)
        finally:
            if self.feeder:
                killed = self.wanted.status == "KILLED"
                seconds = min(self.close_seconds, KILLED_SECONDS) if killed else self.close_seconds
                self.feeder.close(seconds, goes_on=killed)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, FencedError):
            self._abandon()
            return
        if kind is not None and issubclass(kind, Exception) and self.wanted.status == "RUNNING":
            self.finish("FAILED")
        self.close()

    def _abandon(self) -> None:
        """Write nothing more and do not wait: a later attempt now owns the run folder, and its feeder owns the MLflow run."""
        self.journal.pending.clear()
        self.journal.close()
        if self.feeder and self.feeder.process:
            self.feeder.process.kill()

    def _change(self, **changes: Any) -> None:
        self.wanted = replace(self.wanted, **changes)
        try:
            self.wanted.write(self.folder)
        except OSError as error:  # a full disk must not end the run
            what = ", ".join(changes) or "parameters and tags"
            print(f"MLflow will not get {what} of this run: {error}", file=sys.stderr)


def now_in_ms() -> int:
    return time.time_ns() // 1_000_000


def _artifact_name(folder: Path, path: Path) -> str:
    """Return the path of a file as tracking.json states it: relative to the run folder if the file lies in it."""
    path, home = path.resolve(), folder.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def open_tracker(
    folder: Path,
    config: TrackingConfig,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: Mapping[str, Any] | None = None,
    kind: str = "training",
    started: int | None = None,
    enabled: bool = True,
) -> Tracker:
    """Start or continue to record the run in `folder`. If not `enabled` (every rank but the main one), record nothing.

    `params` (nested or flat), `tags` and `dataset` (`pipeline.tracking.inputs.dataset_facts`) describe the run in MLflow,
    without secrets; a parameter that differs from an earlier attempt's becomes a tag `changed.NAME`.
    `kind`: training, ensemble or report, also a tag. `started`: when the run began, in ms since 1970; by default now. Raises
    UserError if metrics.jsonl is damaged.
    """
    if not enabled:
        return Tracker()
    folder.mkdir(parents=True, exist_ok=True)
    before = Wanted.read(folder)
    wanted = Wanted(
        key=before.key if before else uuid.uuid4().hex,
        name=name,
        experiment=config.experiment,
        uri=config.uri,
        started=before.started if before else started or now_in_ms(),
        params={key: without_secrets(value) for key, value in flatten(params).items()},
        tags={key: without_secrets(value) for key, value in {"kind": kind, **tags}.items()},
        artifacts=before.artifacts if before else [],
        dataset=dict(dataset or {}),
        command=without_secrets(os.environ.get(COMMAND_VARIABLE, "")),
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

    `iteration` is the checkpoint's. Values that equal those of an earlier evaluation are not added again. `artifacts`: files
    that MLflow should keep, each with its folder in the MLflow run; ignored while the run is training, because then the
    training alone writes tracking.json. Status, parameters and tags of the run stay as they are. Waits for MLflow as the
    end of a run does.
    """
    wanted = Wanted.read(folder)
    if wanted is not None and not is_held(folder):
        added = [[_artifact_name(folder, path), place] for path, place in artifacts]
        new = [artifact for artifact in added if artifact not in wanted.artifacts]
        replace(wanted, artifacts=wanted.artifacts + new).write(folder)
    journal = Journal(folder / METRICS, repair=not is_held(folder))
    for kind, values in evaluations.items():
        journal.append(kind, iteration, values, revise=True)
    journal.close()
    if config.mlflow and wanted is not None:
        FeederProcess(folder, config.close_seconds).close(config.close_seconds)


def log_result_run(
    folder: Path,
    config: TrackingConfig,
    *,
    name: str,
    kind: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    tags: Mapping[str, str],
    artifacts: Iterable[Path] = (),
    started: int | None = None,
) -> None:
    """Record a result that is no training, such as an ensemble's errors, as a run in `folder`, beside the run folders.

    `kind`: ensemble or report. `metrics` (kind of metrics -> metrics) are as in `log_evaluations`, so that members and
    ensembles share their columns in MLflow. Name the members in `tags`, as `member.NUMBER`: their names, each with its MLflow
    run in brackets. `started`: when the command began, in ms since 1970, so that MLflow shows how long the result took. A
    second call with the same folder continues the same MLflow run.
    """
    began = started or now_in_ms()
    with open_tracker(folder, config, name=name, params=params, tags=tags, kind=kind, started=began) as tracker:
        assert isinstance(tracker, RunTracker)
        for kind, values in metrics.items():
            tracker.journal.append(kind, 0, values, revise=True)
        for path in artifacts:
            tracker.artifact(path)
        # MLflow keeps the first start: a result that is made again took as long as this time, not the days between.
        tracker.finish("FINISHED", ended=tracker.wanted.started + now_in_ms() - began)
