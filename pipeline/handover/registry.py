"""Registers an exported net in MLflow's model registry, as a version of a model, with its card, tags and aliases."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.base.command import UserError
from pipeline.handover.exporting import EXAMPLE_BATCH, Deployed
from pipeline.tracking import TrackingConfig, mlflow_model_id
from pipeline.tracking.connection import mlflow_of
from pipeline.tracking.environment import sentence
from pipeline.tracking.store import store_of

WEIGHTS_TAG = "weights_sha256"  # two versions of a model never have the same one
VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's page of a logged model shows where the model is registered


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the registry says of a net: under the model `name`, whose own description is `about`, a version with the rest.

    files: kept beside the net. metadata: kept in its MLmodel. tags must hold WEIGHTS_TAG.
    """

    name: str
    about: str
    description: str
    tags: Mapping[str, str]
    aliases: Sequence[str]
    files: Sequence[Path]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a model. new: whether this call made it; else the model had these weights already."""

    version: str
    new: bool


def register(run: Path, config: TrackingConfig, module: Deployed, entry: Entry, path: str) -> Registered:
    """Make the net a version of a model, or bring the version that has the same weights up to date.

    The MLflow model is among the artifacts of the run's MLflow run, under `path`, and is loaded with
    `mlflow.pytorch.load_model("models:/NAME@ALIAS")`. Raises UserError if MLflow does not know the run or does not respond.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default waits minutes for a dead server
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    place = store_of(run, config.uri).name
    try:
        uri, run_id = mlflow_of(run, config.uri)
        if run_id is None:
            raise UserError(
                f"MLflow does not know the run {run} yet: send it with 'python -m pipeline.tracking sync {run}'"
            )
        mlflow.set_tracking_uri(uri)
        client = MlflowClient()
        version = _same_weights(client, entry)
        registered = Registered(version=version or _create(client, run_id, module, entry, path), new=version is None)
        _describe(client, entry, registered.version)
        if (model_id := mlflow_model_id(run)) is not None:
            _link(client, model_id, entry, registered.version)
    except MlflowException as error:
        raise UserError(f"MLflow at {place} did not accept the model ({sentence(error)}): try again later") from None
    return registered


def _same_weights(client: Any, entry: Entry) -> str | None:
    """The newest version of the model that has the same weights."""
    versions = client.search_model_versions(f"name = '{entry.name}'")
    same = [int(one.version) for one in versions if one.tags.get(WEIGHTS_TAG) == entry.tags[WEIGHTS_TAG]]
    return str(max(same)) if same else None


def _create(client: Any, run_id: str, module: Deployed, entry: Entry, path: str) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            module,
            f"{folder}/model",
            input_example=torch.zeros(EXAMPLE_BATCH, module.crop, module.crop, 3).numpy(),
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            extra_files=[str(file) for file in entry.files],
            metadata=dict(entry.metadata),
        )
        client.log_artifacts(run_id, f"{folder}/model", path)
    try:
        client.create_registered_model(entry.name, description=entry.about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # With its tags from the start: a call that was interrupted after this line finds the version again.
    source = f"runs:/{run_id}/{path}"
    return str(client.create_model_version(entry.name, source=source, run_id=run_id, tags=dict(entry.tags)).version)


def _describe(client: Any, entry: Entry, version: str) -> None:
    client.update_model_version(entry.name, version, description=entry.description)
    for key, value in entry.tags.items():
        client.set_model_version_tag(entry.name, version, key, value)
    for alias in entry.aliases:
        client.set_registered_model_alias(entry.name, alias, version)


def _link(client: Any, model_id: str, entry: Entry, version: str) -> None:
    """Have the page of the run's logged model say that it is registered, where the model has these weights."""
    tags = client.get_logged_model(model_id).tags
    if tags.get(WEIGHTS_TAG) != entry.tags[WEIGHTS_TAG]:
        return
    client.set_model_version_tag(entry.name, version, "logged_model", model_id)
    versions, this = json.loads(tags.get(VERSIONS_TAG, "[]")), {"name": entry.name, "version": version}
    if this not in versions:
        versions.append(this)
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(versions)})
