"""The logged model of a finished run: MLflow's copy of the model folder, linked to the run and to the errors of its weights.

What it does may be interrupted anywhere and repeated: the model is found again by the run and its key. The copy is small,
because the weights are the checkpoint that the run's artifacts hold already.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipeline.base.json_text import parse_json
from pipeline.base.layout import ML_MODEL, MODEL, MODEL_FACTS
from pipeline.base.regular import read_regular
from pipeline.tracking.connection import KEY_TAG
from pipeline.tracking.description import escape, first_of
from pipeline.tracking.presentation import NOTE
from pipeline.tracking.state import Delivered, model_version

PARAMS = ("arch", "shortcut", "stride", "iteration", "short_side", "crop", "interpolation", "dataset", "train_images")
TAGS = ("dataset_sha256", "checkpoint", "sha256", "weights", "weights_sha256", "git_commit")
LINKED = re.compile(r"loss|.*_error")  # the metrics that say how good a model is
OTHER_WEIGHTS = re.compile(r"[-_](ema|recomputed[-_]bn)")  # in the kinds of metrics of the checkpoint's other weights


def send_model(client: Any, folder: Path, delivered: Delivered, key: str) -> str:
    """Bring the logged model of the finished run in `folder` up to date; what `Delivered.model` then says.

    key: the run's. Raises whatever MLflow raises. Call it when MLflow has the run's metrics and checkpoint. A server of
    MLflow 2 knows no logged models and gets none: the id is then empty.
    """
    from mlflow.exceptions import MlflowException

    version = model_version(folder)  # first: what changes meanwhile is sent by the next call
    facts = parse_json(read_regular(folder / MODEL / MODEL_FACTS))
    try:
        found = _find(client, delivered, key)
    except MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        return f" {version}"
    model = found or _create(client, delivered, key, facts)
    contents = delivered.model.partition(" ")[2].partition(":")[0]
    if delivered.model_id != model.model_id or contents != version.partition(":")[0]:
        _upload(client, folder / MODEL, delivered.run_id, model.model_id)
        client.set_logged_model_tags(model.model_id, {NOTE: _note(model.model_id, facts)})
    run = client.get_run(delivered.run_id)
    if model.model_id not in {one.model_id for one in (run.outputs.model_outputs if run.outputs else ())}:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(delivered.run_id, [LoggedModelOutput(model.model_id, facts["iteration"])])
    _link_metrics(client, run, model, facts["iteration"])
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
        described = yaml.safe_load((copy / ML_MODEL).read_text(encoding="utf-8")) | {
            "run_id": run_id,
            "model_id": model_id,
        }
        (copy / ML_MODEL).write_text(yaml.safe_dump(described, sort_keys=False, width=120), encoding="utf-8")
        client.log_model_artifacts(model_id, str(copy))
    client.finalize_logged_model(model_id, "READY")


def _link_metrics(client: Any, run: Any, model: Any, iteration: int) -> None:
    """Let the model have its run's errors at its iteration: those that were measured with its weights."""
    from mlflow.entities import Metric

    known = {metric.key: metric.value for metric in model.metrics or ()}  # the latest of each
    keys = [key for key, value in run.data.metrics.items() if _is_of_model(key) and known.get(key) != value]
    # Points as MLflow has them: the run keeps one of two equal points, and would show a rounded one beside its own.
    points = [
        Metric(key, point.value, point.timestamp, point.step, model_id=model.model_id)
        for key in keys
        for point in client.get_metric_history(run.info.run_id, key)
        if point.step == iteration
    ]
    if points:
        client.log_batch(run.info.run_id, metrics=points)


def _is_of_model(key: str) -> bool:
    kind, _, name = key.rpartition("/")
    return LINKED.fullmatch(name) is not None and not OTHER_WEIGHTS.search(kind)


def _note(model_id: str, facts: dict[str, Any]) -> str:
    """The description on the model's page, in Markdown."""
    classes = facts["classes"]
    crop = facts["crop"]
    data = escape(facts["dataset"])
    return f"""{facts["arch"]} after {facts["iteration"]:,} iterations on {data}: {facts["train_images"]:,} images.

Classes ({len(classes):,}): {first_of(classes)}

Images: RGB, shorter side {facts["short_side"]} ({facts["interpolation"]}), centre {crop} x {crop}, 0..255, no other step.

In this project's checkout; the weights are `{facts["checkpoint"]}` of the run:

```python
model = mlflow.pyfunc.load_model("models:/{model_id}")
scores = model.predict(images)  # float32 [N, {crop}, {crop}, 3] -> softmax float32 [N, {len(classes)}]
names = model.metadata.metadata["classes"]
```
"""
