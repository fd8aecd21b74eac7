"""A finished run's model in a real MLflow: listed once, with its run's errors, loaded with the run's weights or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

from pipeline.base.command import UserError
from pipeline.base.layout import checkpoints_in
from pipeline.data.dataset import Dataset
from pipeline.handover.model_folder import write_model
from pipeline.models.resnet import build
from pipeline.run.config import Config
from pipeline.run.options import load
from pipeline.tracking import (
    TrackingConfig,
    is_delivered,
    log_evaluations,
    mlflow_model_id,
    mlflow_run_id,
    open_tracker,
)
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.process import what_is_left
from pipeline.training.checkpoint import Checkpoint, read_verified
from tests.pipeline.evaluation.nets_and_images import write_run
from tests.pipeline.tracking.mlflow_store import points, store_uri

OFFLINE = TrackingConfig(mlflow=False)
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy


@pytest.fixture
def runs(tmp_path: Path, empty_store: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder


def sound(path: Path) -> Checkpoint:
    return read_verified(path)


@pytest.fixture
def finished(runs: Path, ten_classes: Dataset) -> Path:
    """A run folder as a training leaves it, with its model folder and metrics; nothing is delivered."""
    folder = write_run(runs, "one.two", ten_classes)
    ((iteration, path),) = checkpoints_in(folder / "checkpoints")
    config = load(folder / "config.yaml")
    with open_tracker(folder, OFFLINE, name="one.two", params={}, tags={}) as tracker:
        tracker.log("train", iteration - 1, {"loss": 9.0})
        tracker.log("train", iteration, {"loss": 1.0, "top1_error": 30.0, "lr": 0.1})
        tracker.log("val", iteration, {"top1_error": 40.0, "top5_error": 1 / 3})
        tracker.log("val_ema", iteration, {"top1_error": 41.0})
        tracker.log("val_recomputed_bn", iteration, {"top1_error": 42.0})
        tracker.artifact(path, "checkpoints")
        write_model(folder, config, ten_classes, sound(path))
        tracker.finish("FINISHED")
    return folder


def deliver(folder: Path, uri: str | None = None) -> str:
    """The id of the logged model, after a delivery."""
    Delivery(folder, print, uri).deliver()
    model_id = mlflow_model_id(folder)
    assert model_id is not None
    return model_id


def models_in(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    return list(client.search_logged_models([client.get_experiment_by_name("resnet").experiment_id]))


@pytest.fixture
def load_in(runs: Path) -> Any:
    """Load a logged model, as people do who have set the tracking URI."""

    def load_model(model_id: str, uri: str = store_uri(runs)) -> Any:
        mlflow.set_tracking_uri(uri)
        return mlflow.pyfunc.load_model(f"models:/{model_id}")

    yield load_model
    mlflow.set_tracking_uri(None)


@torch.no_grad()
def own_answers(checkpoint: Path, dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Softmax of the checkpoint's net, written out."""
    net = build("resnet8", classes=10)
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    pixels = torch.from_numpy(images - dataset.statistics.mean_image).permute(0, 3, 1, 2)
    return net.eval()(pixels).softmax(dim=1).numpy()


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)


def test_the_model_is_listed_with_its_run(runs: Path, finished: Path, ten_classes: Dataset) -> None:
    assert "the model" in what_is_left(finished) and not is_delivered(finished)
    model_id = deliver(finished)
    assert what_is_left(finished) == "" and is_delivered(finished)
    (model,) = models_in(store_uri(runs))
    run_id = str(mlflow_run_id(finished))
    assert (model.model_id, model.source_run_id, str(model.status)) == (model_id, run_id, "READY")
    assert model.name == "one_two", "MLflow takes no dot"
    assert (model.params["arch"], model.params["classes"], model.params["dataset"]) == ("resnet8", "10", "test")
    assert model.tags["dataset_sha256"] == ten_classes.sha256
    assert "n00000003" in model.tags["mlflow.note.content"]
    (output,) = MlflowClient(store_uri(runs)).get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model_id, 100)


def test_the_model_has_the_errors_of_its_weights(runs: Path, finished: Path) -> None:
    uri, run_id = store_uri(runs), ""
    for _ in range(2):
        deliver(finished)
        log_evaluations(
            finished, OFFLINE, 100, {"ten-crop-val": {"top1_error": 38.5}, "center-val-ema": {"top1_error": 1}}
        )
    deliver(finished)
    (model,) = models_in(uri)
    metrics = [(one.key, one.value, one.step) for one in model.metrics]
    assert sorted(metrics) == [
        ("ten-crop-val/top1_error", 38.5, 100),
        ("train/loss", 1.0, 100),
        ("train/top1_error", 30.0, 100),
        ("val/top1_error", 40.0, 100),
        ("val/top5_error", 0.3333, 100),  # as the run shows it
    ]
    run_id = str(mlflow_run_id(finished))
    assert [point[:2] for point in points(uri, run_id, "val/top1_error")] == [(100, 40.0)], "no point twice"


def test_the_model_folder_is_small_and_tells_how_to_use_it(finished: Path, ten_classes: Dataset) -> None:
    folder = finished / "model"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000
    description = yaml.safe_load((folder / "MLmodel").read_text())
    assert description["metadata"]["classes"] == [f"n{number:08d}" for number in range(10)]
    assert description["metadata"]["preprocessing"]["short_side"] == 36
    facts = json.loads((folder / "model.json").read_text())
    assert facts["sha256"].startswith(facts["checkpoint"][9:25]), "the digest in the checkpoint's name"
    np.testing.assert_array_equal(np.load(folder / "mean.npy"), ten_classes.statistics.mean_image)
    assert (folder / "classes.txt").read_text().splitlines()[3] == "n00000003"


def test_mlflow_reads_the_signature_as_its_own(finished: Path) -> None:
    from mlflow.models import Model
    from mlflow.models.signature import infer_signature

    read = Model.load(str(finished / "model")).signature
    assert read == infer_signature(np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 10), np.float32))


def test_the_model_gives_the_nets_own_scores(finished: Path, ten_classes: Dataset, load_in: Any) -> None:
    loaded = load_in(deliver(finished))
    ((_, checkpoint),) = checkpoints_in(finished / "checkpoints")
    np.testing.assert_allclose(loaded.predict(pixels()), own_answers(checkpoint, ten_classes, pixels()), atol=1e-6)
    assert not any(module.training for module in loaded.get_raw_model().modules())
    assert loaded.metadata.metadata["classes"][0] == "n00000000"


def test_weights_are_taken_from_mlflow_where_the_run_folder_has_gone(
    runs: Path, finished: Path, ten_classes: Dataset, load_in: Any
) -> None:
    model_id = deliver(finished)
    ((_, checkpoint),) = checkpoints_in(finished / "checkpoints")
    expected = own_answers(checkpoint, ten_classes, pixels())
    finished.rename(runs / "elsewhere")
    np.testing.assert_allclose(load_in(model_id).predict(pixels()), expected, atol=1e-6)
    (artifact,) = runs.glob("mlartifacts/*/artifacts/checkpoints/*.pt")
    contents = artifact.read_bytes()
    artifact.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    with pytest.raises(UserError, match=r"the weights of one.two .* cannot be loaded: .*00000100-.* holds others; put"):
        load_in(model_id)
    artifact.unlink()
    with pytest.raises(UserError, match="cannot be loaded: they have gone; put the run folder back to"):
        load_in(model_id)
    # The run folder itself is a model too, wherever it lies.
    moved = mlflow.pyfunc.load_model(str(runs / "elsewhere/model"))
    np.testing.assert_allclose(moved.predict(pixels()), expected, atol=1e-6)


@pytest.mark.parametrize("broken", ["log_model_artifacts", "finalize_logged_model", "log_outputs"])
def test_a_delivery_that_broke_off_is_repeated(
    runs: Path, finished: Path, load_in: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, fail)
        with pytest.raises(OSError, match="the line is dead"):
            deliver(finished)
    assert "the model" in what_is_left(finished)
    (finished / "mlflow.json").unlink()
    model_id = deliver(finished)
    assert [model.model_id for model in models_in(store_uri(runs))] == [model_id]
    outputs = MlflowClient(store_uri(runs)).get_run(mlflow_run_id(finished)).outputs
    assert len(outputs.model_outputs) == 1
    assert load_in(model_id).predict(pixels()).shape == (3, 10)


def test_another_store_gets_a_model_of_its_own(runs: Path, finished: Path, empty_store: Path, load_in: Any) -> None:
    first = deliver(finished)
    shutil.copy(empty_store, runs / "other.db")
    other = f"sqlite:///{runs / 'other.db'}"
    second = deliver(finished, other)
    assert first != second and [model.model_id for model in models_in(other)] == [second]
    shutil.rmtree(finished)
    assert load_in(second, other).predict(pixels()).shape == (3, 10)


def test_a_model_deleted_with_its_run_is_made_anew(runs: Path, finished: Path) -> None:
    first = deliver(finished)
    MlflowClient(store_uri(runs)).delete_run(mlflow_run_id(finished))
    assert deliver(finished) != first


def test_a_server_without_logged_models_gets_the_rest(
    runs: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow's client raises where a server answers 404 (tried: ENDPOINT_NOT_FOUND)."""
    from mlflow.exceptions import MlflowException, get_error_code

    def missing(*arguments: object, **keywords: object) -> None:
        raise MlflowException("failed with error code 404", error_code=get_error_code(404))

    monkeypatch.setattr(MlflowClient, "search_logged_models", missing)
    Delivery(finished, print).deliver()
    assert is_delivered(finished) and what_is_left(finished) == "" and mlflow_model_id(finished) is None


def test_a_full_disk_does_not_end_the_run(
    finished: Path, ten_classes: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished / "model")
    (finished / "model").write_text("in the way")
    ((_, path),) = checkpoints_in(finished / "checkpoints")
    config: Config = load(finished / "config.yaml")
    write_model(finished, config, ten_classes, sound(path))
    assert "warning: the folder model of the run was not written" in capsys.readouterr().err
