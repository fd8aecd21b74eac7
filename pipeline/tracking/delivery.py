"""Brings MLflow up to date with one run folder, whatever it has already.

Delivery may be interrupted at any point and repeated: metrics carry the time stamps of their lines, so that a batch sent
twice is stored once, and the MLflow run is found by its key if its id was not saved yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.layout import METRICS
from pipeline.tracking.connection import KEY_TAG, connect
from pipeline.tracking.description import MemberRun, describe, errors_in, number
from pipeline.tracking.environment import sentence
from pipeline.tracking.figures import derived, rounded, tidy
from pipeline.tracking.inputs import facts_of_an_older_run, log_dataset
from pipeline.tracking.journal import Record, read_metrics, unsent_lines
from pipeline.tracking.limits import PARAM_LENGTH, PARAMS_PER_BATCH, TAG_LENGTH, clean, send_metrics
from pipeline.tracking.logged_model import send_model
from pipeline.tracking.presentation import (
    KIND_TAG,
    MEMBER_TAG,
    kind_of,
    member_tags,
    members_of,
    show_errors_first,
    write_note,
)
from pipeline.tracking.state import LOOK, Delivered, Wanted
from pipeline.tracking.store import Store, open_store, store_of
from pipeline.tracking.system import energy_in_words, send_system


class Delivery:
    """Brings MLflow up to date with the run in `folder`. `notify` prints to the user.

    `uri` or `store`: another MLflow than the run's own.
    """

    def __init__(
        self, folder: Path, notify: Callable[[str], None], uri: str | None = None, store: Store | None = None
    ) -> None:
        self.folder, self.notify, self.uri, self.given = folder.resolve(), notify, uri, store
        self.delivered = Delivered.read(folder)
        self.client: Any = None
        self.described: Wanted | None = None  # whose parameters and tags the MLflow run has
        self.dataset: dict[str, Any] = {}
        self.members: list[MemberRun] = []
        self.errors: dict[str, tuple[float, float]] = {}
        self.note = ""

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
            self._send_metrics(wanted)
            self._send_system(wanted)
            self._send_note(wanted)
            self._send_status(wanted, killed)
            self._send_artifacts(wanted)
            if not self.delivered.has_model(self.folder):
                self._save(model=send_model(self.client, self.folder, self.delivered, wanted.key))
        except Exception as error:
            self.described = None  # look the MLflow run up again: it may be gone
            self._save(error=sentence(error))
            raise
        if self.delivered.error or self.delivered.look != LOOK:
            self._save(error="", look=LOOK)

    def _connect(self, wanted: Wanted) -> None:
        """Find or create the MLflow run, on first use and after an error."""
        if self.described is not None:
            return
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.store = open_store(self.given or store_of(self.folder, self.uri or wanted.uri))
        self.client = self.client or MlflowClient(tracking_uri=self.store.uri, registry_uri=self.store.uri)
        self.errors = errors_in(read_metrics(self.folder / METRICS))
        delivered = connect(self.client, self.folder, self.store, self.delivered, wanted, self.notify)
        if delivered is not self.delivered:
            self.delivered = delivered
            self._save()
        with suppress(MlflowException):  # of a server, say, where others own the experiment
            show_errors_first(self.client, self.client.get_experiment(delivered.experiment_id))

    def _describe(self, wanted: Wanted) -> None:
        """Send parameters, tags and dataset. MLflow refuses to change a parameter, so the new value becomes a tag."""
        before = self.described
        if before is not None and (before.params, before.tags, before.dataset) == (
            wanted.params,
            wanted.tags,
            wanted.dataset,
        ):
            return
        from mlflow.entities import Param, RunTag

        run = self.client.get_run(self.delivered.run_id)
        data = run.data
        self.dataset = wanted.dataset or facts_of_an_older_run(wanted.params, wanted.tags)
        self.members = members_of(self.client, self.folder, self.store, wanted)
        if self.dataset:
            log_dataset(self.client, run, self.dataset)
        params = {clean(key): tidy(value)[:PARAM_LENGTH] for key, value in wanted.params.items()}
        tags = wanted.tags | member_tags(self.members) | {KIND_TAG: kind_of(wanted), KEY_TAG: wanted.key}
        tags = {clean(key): value[:TAG_LENGTH] for key, value in tags.items()}
        tags |= {f"changed.{key}": value for key, value in params.items() if tidy(data.params.get(key, value)) != value}
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

    def _send_note(self, wanted: Wanted) -> None:
        """Send the description where what it says has changed."""
        energy = energy_in_words(self.folder) if wanted.status != "RUNNING" else ""  # each sample would change it
        note = describe(wanted, kind_of(wanted), self.dataset, self.errors, self.members, self.folder, energy)
        if note != self.note:
            write_note(self.client, self.delivered.run_id, note)
            self.note = note

    def _send_metrics(self, wanted: Wanted) -> None:
        from mlflow.entities import Metric

        for records, position in self._unsent():
            points = [
                Metric(clean(name), value, record.time, record.iteration)
                for record in records
                for name, value in self._figures(record, wanted)
            ]
            send_metrics(self.client, self.delivered.run_id, points)
            self.errors |= errors_in(records)
            self._save(position=position)

    def _send_system(self, wanted: Wanted) -> None:
        for sent in send_system(self.client, self.delivered.run_id, self.folder, wanted.started, self.delivered.system):
            self._save(system=sent)

    def _figures(self, record: Record, wanted: Wanted) -> Iterator[tuple[str, float]]:
        """The metrics of a line as MLflow shows them: (name, value)."""
        for name, value in record.values.items():
            yield f"{record.kind}/{name}", rounded(name, value)
        if record.kind == "train":
            iterations, batch = (number(wanted.params, key) for key in ("iterations", "batch"))
            images, rate = self.dataset.get("splits", {}).get("train"), record.values.get("images_per_second")
            for name, value in derived(record.iteration, rate, iterations=iterations, batch=batch, images=images):
                yield name, rounded(name, value)

    def _unsent(self) -> Iterator[tuple[list[Record], int]]:
        """Yield the records of metrics.jsonl that MLflow does not have, in batches, each with the position after it."""
        path = self.folder / METRICS
        if not path.exists():
            return
        with open(path, "rb") as file:
            for lines, position in unsent_lines(file, self.delivered.position):
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
