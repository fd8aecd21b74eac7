"""Brings MLflow up to date with one run folder, whatever it has already; the only module here that talks to MLflow.

Delivery may be interrupted at any point and repeated: metrics carry the time stamps of their lines, so that a batch sent
twice is stored once, and the MLflow run is found by its key if its id was not saved yet.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.layout import METRICS, MLFLOW_ARTIFACTS
from pipeline.tracking.journal import Record, complete_lines
from pipeline.tracking.state import Delivered, Wanted, resolve_uri, without_password

# MLflow's own limits (mlflow/utils/validation.py).
METRICS_PER_BATCH, PARAMS_PER_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 8000
KEY_TAG = "run_key"
MEMBER_TAG = re.compile(r"member\.\d+")  # numbered: those left over from an earlier, larger ensemble are removed
# MLflow 3.4 opens its page in the view for this kind; 3.17 goes by `workflowType` in the address (see `open`) and a switch.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
ABANDONED_SECONDS = 3600.0  # making a store takes less than a minute
BYTES_PER_READ = 1 << 16  # a few hundred lines; at most so much is sent again after a crash


class Delivery:
    """Brings MLflow up to date with the run in `folder`. `notify` prints to the user; `uri` overrides the run's own."""

    def __init__(self, folder: Path, notify: Callable[[str], None], uri: str | None = None) -> None:
        self.folder, self.notify, self.uri = folder, notify, uri
        self.delivered = Delivered.read(folder)
        self.client: Any = None
        self.described: Wanted | None = None  # whose parameters and tags the MLflow run has

    def deliver(self, *, killed: bool = False) -> None:
        """Send what MLflow does not have yet. Raises whatever MLflow raises; then call it again later.

        `killed`: report a run that did not state how it ended as KILLED.
        """
        wanted = Wanted.read(self.folder)
        if wanted is None:
            return
        try:
            self._connect(wanted)
            self._describe(wanted)
            self._send_metrics()
            self._send_status(wanted, killed)
            self._send_artifacts(wanted)
        except Exception as error:
            self.described = None  # look the MLflow run up again: it may be gone
            self._save(error=sentence(error))
            raise
        if self.delivered.error:
            self._save(error="")

    def _connect(self, wanted: Wanted) -> None:
        """Find or create the MLflow run, on first use and after an error."""
        if self.described is not None:
            return
        from mlflow import MlflowClient

        uri = self.uri or resolve_uri(self.folder, wanted.uri)
        if uri.startswith("sqlite:////"):
            make_store(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
        self.client = self.client or MlflowClient(tracking_uri=uri, registry_uri=uri)
        place, known = without_password(uri), self.delivered
        if known.run_id:
            if self._active(known.run_id):
                self._save(uri=place)
                return
            what = "was deleted from" if known.uri == place else "is not yet in"
            self.notify(f"run {wanted.name} {what} MLflow at {place}: a new MLflow run takes all its metrics")
        experiment = self._experiment(wanted.experiment, uri)
        runs = self.client.search_runs([experiment], f"tags.{KEY_TAG} = '{wanted.key}'", max_results=1)
        run = runs[0] if runs else self._create(experiment, wanted)
        self.delivered = Delivered(uri=place, experiment_id=experiment, run_id=run.info.run_id)
        self._save()

    def _active(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _experiment(self, name: str, uri: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is None:
            # A server knows where to keep artifacts; a local store would put them into the working directory.
            remote = uri.startswith(("http://", "https://", "databricks"))
            location = None if remote else (self.folder.parent / MLFLOW_ARTIFACTS).as_uri()
            try:
                return self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                    raise
                known = self.client.get_experiment_by_name(name)
        if known.lifecycle_stage != "active":
            raise ValueError(f"experiment '{name}' is deleted: restore it or set tracking.experiment to another name")
        return known.experiment_id

    def _create(self, experiment: str, wanted: Wanted) -> Any:
        tags = {KEY_TAG: wanted.key, "mlflow.source.name": "resnet-on-clusters"}
        with suppress(OSError, KeyError):  # the user of a container may have no name
            tags["mlflow.user"] = getpass.getuser()
        return self.client.create_run(experiment, start_time=wanted.started, tags=tags, run_name=wanted.name)

    def _describe(self, wanted: Wanted) -> None:
        """Send parameters and tags. MLflow refuses to change a parameter, so the new value becomes a tag."""
        if self.described is not None and (self.described.params, self.described.tags) == (wanted.params, wanted.tags):
            return
        from mlflow.entities import Param, RunTag

        data = self.client.get_run(self.delivered.run_id).data
        params = {clean(key): value[:PARAM_LENGTH] for key, value in wanted.params.items()}
        tags = {clean(key): value[:TAG_LENGTH] for key, value in wanted.tags.items()}
        tags |= {f"changed.{key}": value for key, value in params.items() if data.params.get(key, value) != value}
        if "git_commit" in tags:
            tags["mlflow.source.git.commit"] = tags["git_commit"]
        new_params = [Param(key, value) for key, value in params.items() if key not in data.params]
        new_tags = [RunTag(key, value) for key, value in tags.items() if data.tags.get(key) != value]
        for start in range(0, max(len(new_params), len(new_tags)), PARAMS_PER_BATCH):
            part = slice(start, start + PARAMS_PER_BATCH)
            self.client.log_batch(self.delivered.run_id, params=new_params[part], tags=new_tags[part])
        for key in data.tags if "member.1" in tags else ():
            if MEMBER_TAG.fullmatch(key) and key not in tags:
                self.client.delete_tag(self.delivered.run_id, key)
        self.described = wanted

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        for records, position in self._unsent():
            points = [
                Metric(clean(f"{record.kind}/{name}"), value, record.time, record.iteration)
                for record in records
                for name, value in record.values.items()
            ]
            for start in range(0, len(points), METRICS_PER_BATCH):
                self.client.log_batch(self.delivered.run_id, metrics=points[start : start + METRICS_PER_BATCH])
            self._save(position=position)

    def _unsent(self) -> Iterator[tuple[list[Record], int]]:
        """Yield the records of metrics.jsonl that MLflow does not have, in batches, each with the position after it."""
        path, position = self.folder / METRICS, self.delivered.position
        if not path.exists():
            return
        with open(path, "rb") as file:
            # A file that is shorter than its sent part has been replaced: send all, nothing is stored twice.
            position = position if position <= path.stat().st_size else 0
            file.seek(position)
            while lines := complete_lines(b"".join(file.readlines(BYTES_PER_READ))):
                position += sum(map(len, lines))
                yield [Record.from_line(line) for line in lines], position

    def _send_status(self, wanted: Wanted, killed: bool) -> None:
        status = "KILLED" if killed and wanted.status == "RUNNING" else wanted.status
        if status == self.delivered.status:
            return
        if status == "RUNNING":
            self.client.update_run(self.delivered.run_id, status=status)
        else:
            ended = wanted.ended or time.time_ns() // 1_000_000
            self.client.set_terminated(self.delivered.run_id, status=status, end_time=ended)
        self._save(status=status)

    def _send_artifacts(self, wanted: Wanted) -> None:
        artifacts = wanted.files(self.folder)
        for artifact in artifacts:
            if not artifact.file.exists() and artifact.key not in self.delivered.artifacts:
                self.notify(f"{artifact.file} was removed before MLflow got it")
                self._save(artifacts=self.delivered.artifacts | {artifact.key: "removed"})
        for artifact in self.delivered.unsent(artifacts):
            version = artifact.version
            self.client.log_artifact(self.delivered.run_id, str(artifact.file), artifact.folder or None)
            self._save(artifacts=self.delivered.artifacts | {artifact.key: version})

    def _save(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.delivered, name, value)
        self.delivered.write(self.folder)


def make_store(path: Path) -> None:
    """Make MLflow's SQLite file, whole or not at all.

    Two processes that made it at once, or one that was killed while making it, left MLflow's migrations half done, and no
    later start could mend that.
    """
    if path.exists() or not path.parent.is_dir():
        return
    from mlflow import MlflowClient

    for abandoned in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
        with suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.") as folder:
        store = Path(folder) / path.name
        MlflowClient(tracking_uri=f"sqlite:///{store}").search_experiments(max_results=1)
        with suppress(OSError):  # another process was quicker; or there are no hard links: MLflow then makes the file
            os.link(store, path)


def clean(name: str) -> str:
    """Turn a name into one that MLflow accepts for a metric, parameter or tag: plain characters, no relative path parts."""
    parts = [part for part in re.sub(r"[^/\w.\- ]", "_", name)[:250].split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into MLflow parameters: dotted names, values as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def sentence(error: Exception) -> str:
    """Shorten an error to a few words for the user; the whole error goes to the log."""
    text = " ".join(str(error).split())
    for sign, words in (
        ("Connection refused", "connection refused"),
        ("NameResolutionError", "unknown host"),
        ("Read timed out", "no answer in time"),
        ("ConnectTimeout", "no answer in time"),
    ):
        if sign in text:
            return words
    return text[:200] or type(error).__name__
