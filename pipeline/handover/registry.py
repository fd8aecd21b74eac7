"""Registers an exported net in MLflow's model registry, as a version of a model, under aliases."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.base.command import UserError
from pipeline.handover.exporting import EXAMPLE_BATCH, Deployed
from pipeline.tracking import TrackingConfig
from pipeline.tracking.delivery import mlflow_of
from pipeline.tracking.store import store_of


def register(run: Path, config: TrackingConfig, module: Deployed, name: str, aliases: Sequence[str], path: str) -> str:
    """Register the net as a new version of the model `name`, with `aliases`; return the version.

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
        with tempfile.TemporaryDirectory() as folder:
            example = torch.zeros(EXAMPLE_BATCH, module.crop, module.crop, 3).numpy()
            requirements = [f"torch=={torch.__version__.partition('+')[0]}"]
            mlflow.pytorch.save_model(module, f"{folder}/model", input_example=example, pip_requirements=requirements)
            client.log_artifacts(run_id, f"{folder}/model", path)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(name, source=f"runs:/{run_id}/{path}", run_id=run_id).version
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLflow at {place} did not accept the model ({reason}): try again later") from None
    return str(version)
