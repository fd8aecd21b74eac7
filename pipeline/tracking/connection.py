"""The MLflow run of a run folder: finds it, or creates it, and says what it has already.

It is found by the id that mlflow.json noted, else by its key: whatever was interrupted, moved or copied, there is one.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.layout import METRICS
from pipeline.tracking.journal import Record, complete_lines
from pipeline.tracking.limits import clean
from pipeline.tracking.presentation import COLOR, experiment_tags, free_color
from pipeline.tracking.state import Delivered, Wanted
from pipeline.tracking.store import Store, mend, store_of

KEY_TAG = "run_key"


def connect(
    client: Any, folder: Path, store: Store, known: Delivered, wanted: Wanted, notify: Callable[[str], None]
) -> Delivered:
    """Find or create the MLflow run; return what MLflow has of the run: `known` itself, unless this is another MLflow.

    notify: is told where a run that was delivered once is delivered anew.
    """
    if (run := find_run(client, store, known, wanted)) is None:
        if known.run_id:
            what = "was deleted from" if known.uri == store.name else "is not yet in"
            notify(f"run {wanted.name} {what} MLflow at {store.name}: a new MLflow run takes all its metrics")
        run = _create(client, _experiment(client, wanted.experiment, store), wanted)
    experiment, run_id = run.info.experiment_id, run.info.run_id
    if (known.uri, known.run_id) == (store.name, run_id):
        return known
    delivered = Delivered(uri=store.name, experiment_id=experiment, run_id=run_id)
    if known.run_id == run_id:  # a copy of the MLflow that had the run, of the same moment or an earlier one
        delivered.artifacts = _still_there(client, folder, known, wanted)
        delivered.position = known.position if _has_line_before(client, folder, known) else 0
    return delivered


def find_run(client: Any, store: Store, known: Delivered, wanted: Wanted) -> Any:
    """Return the MLflow run that this MLflow has of a run: the one that is known, else one with its key; None without one."""
    from mlflow.exceptions import MlflowException

    if known.run_id:
        try:
            run = client.get_run(known.run_id)
            if run.info.lifecycle_stage == "active":
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    experiment = client.get_experiment_by_name(wanted.experiment)
    if experiment is None or experiment.lifecycle_stage != "active":
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.{KEY_TAG} = '{wanted.key}'", max_results=1)
    return runs[0] if runs else None


def mlflow_of(folder: Path, configured: str | None) -> tuple[str, str | None]:
    """(address, MLflow run) of the run in `folder` in the MLflow that it belongs to, where `configured` is its tracking.uri.

    The run is None where that MLflow does not know it. What is written there stays beside the run folders, also where they
    were copied or moved. Raises whatever MLflow raises.
    """
    from mlflow import MlflowClient

    store, wanted = store_of(folder, configured), Wanted.read(folder)
    if wanted is None or (store.file is not None and not store.file.exists()):
        return store.uri, None
    mend(store)
    client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
    run = find_run(client, store, Delivered.read(folder), wanted)
    return store.uri, None if run is None else run.info.run_id


def _experiment(client: Any, name: str, store: Store) -> str:
    """The id of the experiment, which is made if it is missing. Raises ValueError for one that was deleted."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        # A server knows where to keep artifacts; a local store would put them into the working directory.
        location = store.artifacts.as_uri() if store.artifacts else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=experiment_tags({})))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                raise
            known = client.get_experiment_by_name(name)
    if known.lifecycle_stage != "active":
        raise ValueError(f"experiment '{name}' is deleted: restore it or set tracking.experiment to another name")
    return str(known.experiment_id)


def _create(client: Any, experiment: str, wanted: Wanted) -> Any:
    tags = {KEY_TAG: wanted.key, "mlflow.source.name": "resnet-on-clusters"}
    tags[COLOR] = free_color(client, experiment)
    with suppress(OSError, KeyError):  # the user of a container may have no name
        tags["mlflow.user"] = getpass.getuser()
    return client.create_run(experiment, start_time=wanted.started, tags=tags, run_name=wanted.name)


def _still_there(client: Any, folder: Path, known: Delivered, wanted: Wanted) -> dict[str, str]:
    """Those of the delivered artifacts that this MLflow holds: its artifacts may not have been copied with it."""
    files = {artifact.key: artifact for artifact in wanted.files(folder) if artifact.key in known.artifacts}
    folders = {artifact.folder for artifact in files.values()}
    there = {one.path for place in folders for one in client.list_artifacts(known.run_id, place or None)}
    return {key: known.artifacts[key] for key, artifact in files.items() if artifact.place in there}


def _has_line_before(client: Any, folder: Path, known: Delivered) -> bool:
    """Whether MLflow has the last line of the part of metrics.jsonl that was sent, and so all before it."""
    path = folder / METRICS
    lines = complete_lines(path.read_bytes()[: known.position]) if path.exists() else []
    if not lines:
        return False
    record = Record.from_line(lines[-1])
    name = clean(f"{record.kind}/{next(iter(record.values), '')}")
    history = client.get_metric_history(known.run_id, name)
    return any((point.step, point.timestamp) == (record.iteration, record.time) for point in history)
