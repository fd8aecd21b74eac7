"""The logged model of a finished run: MLflow's copy of the model folder, linked to the run and to the errors of its weights.

What it does may be interrupted anywhere and repeated: the model is found again by the run and its key. The copy is small,
because the weights are the checkpoint that the run's artifacts hold already.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.base.layout import METRICS, ML_MODEL, MODEL, MODEL_FACTS
from pipeline.tracking.journal import read_metrics
from pipeline.tracking.state import Delivered, model_version

KEY_TAG = "run_key"
PARAMS = ("arch", "shortcut", "stride", "iteration", "short_side", "crop", "interpolation", "dataset", "train_images")
TAGS = ("dataset_sha256", "checkpoint", "sha256", "weights", "weights_sha256", "git_commit")
LINKED = re.compile(r"loss|.*_error")  # the metrics that say how good a model is
OTHER_WEIGHTS = re.compile(
    r"[-_](ema|recomputed[-_]bn)"
)  # in the kinds of metrics of other weights of the same checkpoint


def send_model(client: Any, folder: Path, delivered: Delivered, key: str, named: Callable[[str], str]) -> str:
    """Bring the logged model of the finished run in `folder` up to date; what `Delivered.model` then says.

    key: the run's. named: makes the name of a metric one that MLflow accepts. Raises whatever MLflow raises.
    """
    version = model_version(folder)  # first: what changes meanwhile is sent by the next call
    facts = json.loads((folder / MODEL / MODEL_FACTS).read_text())
    model = _find(client, delivered, key) or _create(client, delivered, key, facts)
    contents = delivered.model.partition(" ")[2].partition(":")[0]
    if delivered.model_id != model.model_id or contents != version.partition(":")[0]:
        _upload(client, folder / MODEL, delivered.run_id, model.model_id)
    if model.model_id not in _outputs(client, delivered.run_id):
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(delivered.run_id, [LoggedModelOutput(model.model_id, facts["iteration"])])
    _link_metrics(client, folder, delivered.run_id, model, facts["iteration"], named)
    return f"{model.model_id} {version}"


def _find(client: Any, delivered: Delivered, key: str) -> Any:
    found = client.search_logged_models([delivered.experiment_id], filter_string=f"tags.{KEY_TAG} = '{key}'")
    return next((model for model in found if model.source_run_id == delivered.run_id), None)


def _create(client: Any, delivered: Delivered, key: str, facts: dict[str, Any]) -> Any:
    return client.create_logged_model(
        delivered.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", facts["name"]),  # MLflow refuses these
        source_run_id=delivered.run_id,
        tags={KEY_TAG: key, **{name: str(facts[name]) for name in TAGS}},
        params={**{name: str(facts[name]) for name in PARAMS}, "classes": str(len(facts["classes"]))},
        model_type="image-classification",
    )


def _upload(client: Any, source: Path, run_id: str, model_id: str) -> None:
    """Send the model folder; its MLmodel also names the run, whose artifacts hold the weights."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / MODEL
        shutil.copytree(source, copy)
        described = yaml.safe_load((copy / ML_MODEL).read_text()) | {"run_id": run_id, "model_id": model_id}
        (copy / ML_MODEL).write_text(yaml.safe_dump(described, sort_keys=False, width=120))
        client.log_model_artifacts(model_id, str(copy))
    client.finalize_logged_model(model_id, "READY")


def _outputs(client: Any, run_id: str) -> set[str]:
    outputs = client.get_run(run_id).outputs
    return {one.model_id for one in outputs.model_outputs} if outputs else set()


def _link_metrics(
    client: Any, folder: Path, run_id: str, model: Any, iteration: int, named: Callable[[str], str]
) -> None:
    """Let the model have its run's errors at its iteration: those that were measured with its weights."""
    from mlflow.entities import Metric

    known = {(metric.key, metric.value, metric.timestamp) for metric in model.metrics or ()}
    points = [
        Metric(named(f"{record.kind}/{name}"), value, record.time, record.iteration, model_id=model.model_id)
        for record in read_metrics(folder / METRICS)
        if record.iteration == iteration and not OTHER_WEIGHTS.search(record.kind)
        for name, value in record.values.items()
        if LINKED.fullmatch(name)
    ]
    new = [point for point in points if (point.key, point.value, point.timestamp) not in known]
    if new:
        client.log_batch(run_id, metrics=new)
