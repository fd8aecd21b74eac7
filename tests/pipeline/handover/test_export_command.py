"""python -m pipeline.export: every file gives the net's own answers, read by its own library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from pipeline import export
from pipeline.base import command
from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
from pipeline.evaluation.scores import Scores, load, save
from pipeline.tracking import TrackingConfig, mlflow_run_id, open_tracker
from pipeline.tracking.delivery import Delivery
from tests.pipeline.evaluation.nets_and_images import (
    changed_copy,
    decoded,
    name_data,
    provenance,
    random_softmax,
    write_run,
)


@pytest.fixture
def made_run(ten_classes: Dataset, tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs", "one", ten_classes)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: export.main(list(map(str, arguments))))
    return int(ended.value.code or 0)


def pixels(dataset: Dataset) -> np.ndarray:
    """float32 [3, 32, 32, 3], 0..255."""
    return np.stack([np.asarray(image.resize((32, 32)), np.float32) for image in decoded(dataset)[:3]])


@torch.no_grad()
def own_answers(folder: Path, dataset: Dataset) -> np.ndarray:
    net = open_checkpoint(find_checkpoint(folder), "final").net.eval()
    images = pixels(dataset) - dataset.statistics.mean_image
    return net(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def exported(ten_classes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, what was exported of it); the run has scores of its own weights and of others."""
    runs = tmp_path_factory.mktemp("exported")
    folder = write_run(runs, "one", ten_classes)
    digest = open_checkpoint(find_checkpoint(folder), "final").weights_sha256
    labels = ten_classes.split("train").labels
    for number, weights in enumerate((digest, "of other weights")):
        table = random_softmax(np.random.default_rng(number), 150, ten_classes.classes)
        made = provenance(
            "ten-crop", split="train", weights_sha256=weights, iteration=number, dataset_sha256=ten_classes.sha256
        )
        scores = Scores(scores=table, ids=np.arange(150), labels=labels, provenance=made)
        save(scores, folder / f"scores/ten-crop-train-{number:08d}.npz")
    assert run(folder, "--out", runs / "out") == 0
    return folder, runs / "out"


def test_all_formats_are_written_with_a_card(exported: tuple[Path, Path]) -> None:
    names = ["README.md", "mean.npy", "model.onnx", "model.pt2", "model.safetensors"]
    assert sorted(one.name for one in exported[1].iterdir()) == names


def test_the_whole_net_takes_pixels_and_gives_softmax(exported: tuple[Path, Path], ten_classes: Dataset) -> None:
    folder, out = exported
    answers = own_answers(folder, ten_classes)
    assert answers.std(axis=0).max() > 0.05
    loaded = torch.export.load(out / "model.pt2").module()
    np.testing.assert_allclose(loaded(torch.from_numpy(pixels(ten_classes))).detach().numpy(), answers, atol=1e-5)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": pixels(ten_classes)})
    np.testing.assert_allclose(scores, answers, atol=1e-5)
    np.testing.assert_array_equal(np.load(out / "mean.npy"), ten_classes.statistics.mean_image)


def test_safetensors_hold_the_weights(exported: tuple[Path, Path]) -> None:
    folder, out = exported
    loaded = load_file(out / "model.safetensors")
    state = torch.load(find_checkpoint(folder), weights_only=True)["model"]
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_card_tells_errors_recipe_and_data(exported: tuple[Path, Path], ten_classes: Dataset) -> None:
    folder, out = exported
    card, scores = (out / "README.md").read_text(), load(folder / "scores/ten-crop-train-00000000.npz")
    told = f"| train | 150 | ten-crop | {scores.errors(1):.2f} | {scores.errors(5):.2f} |"
    assert told in card and card.count("| ten-crop |") == 1, "the errors of these weights alone"
    assert ten_classes.sha256 in card and scores.provenance.weights_sha256 in card
    assert "arch: resnet8" in card and "batch: 16" in card
    assert str(folder.parent) not in card, "no folders of this machine"


def test_a_file_that_differs_is_removed(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: {k: v + 1 for k, v in load_file(path).items()})
    assert run(made_run, "--out", tmp_path / "out", "--format", "safetensors") == 2
    assert "differed from the net" in capsys.readouterr().err
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
def test_a_net_is_registered_under_aliases(
    made_run: Path, ten_classes: Dataset, empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_store, made_run.parent)
    text = (made_run / "config.yaml").read_text()
    (made_run / "config.yaml").write_text(text.replace("mlflow: false", "mlflow: true"))
    with open_tracker(made_run, TrackingConfig(mlflow=False), name="one", params={}, tags={}) as tracker:
        tracker.finish("FINISHED")
    Delivery(made_run, print).deliver()
    arguments = ["--register", "resnet8", "--alias", "best", "--alias", "ensemble-member", "--format", "torch-export"]
    assert run(made_run, "--out", tmp_path / "out", *arguments, "--json") == 0
    output = capsys.readouterr().out
    assert "Registered in MLflow as resnet8, version 1, best, ensemble-member." in output
    assert json.loads(output.splitlines()[-1])["version"] == "1"
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{made_run.parent}/mlflow.db")
    try:
        version = mlflow.MlflowClient().get_model_version_by_alias("resnet8", "best")
        assert version.run_id == mlflow_run_id(made_run)
        loaded = mlflow.pytorch.load_model("models:/resnet8@ensemble-member")
        scores = loaded(torch.from_numpy(pixels(ten_classes))).detach().numpy()
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_allclose(scores, own_answers(made_run, ten_classes), atol=1e-5)


def test_files_go_by_default_into_a_folder_of_the_runs_name(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(made_run.resolve(), "--format", "safetensors") == 0
    made = {path.name for path in (tmp_path / "exported" / made_run.name).iterdir()}
    assert {"model.safetensors", "README.md"} <= made


def test_mistakes_get_one_sentence(made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "out"]
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "absent", *out], "there is no run folder"),
        ([made_run, *out, "--format", "onx"], "there is no format 'onx': did you mean 'onnx'"),
        ([made_run, *out, "--alias", "best"], "--alias goes with --register"),
        ([made_run, *out, "--register", "a/b"], "'a/b' cannot be a name"),
        ([made_run, *out, "--format", "torch-export", "--register", "x"], "MLflow does not know the run"),
    ]
    for arguments, sentence in cases:
        assert run(*arguments) == 2
        errors = capsys.readouterr().err
        assert sentence in errors and "Traceback" not in errors, (arguments, errors)


@pytest.mark.parametrize("alias", ["latest", "Latest", "v2", "a.b", "x" * 256])
def test_an_alias_that_mlflow_refuses_is_told_first(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], alias: str
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    with pytest.raises(MlflowException):
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
    assert run(made_run, "--out", tmp_path / "out", "--register", "x", "--alias", "best", "--alias", alias) == 2
    errors = capsys.readouterr().err
    assert f"'{alias}' cannot be an alias" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_the_training_dataset_is_known_by_its_content(
    ten_classes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ten_classes.folder, tmp_path / "data")
    folder = write_run(tmp_path / "runs", "one", Dataset(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "moved")
    arguments = [folder, "--out", tmp_path / "out", "--format", "safetensors"]
    assert run(*arguments) == 2
    assert "is not a dataset folder" in capsys.readouterr().err
    assert run(*arguments, "--data", tmp_path / "moved") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out/mean.npy"), ten_classes.statistics.mean_image)
    other = changed_copy(ten_classes, tmp_path / "other", lambda manifest: manifest.update(seed=1))
    assert run(*arguments, "--data", other.folder) == 2
    assert "is not the dataset that one was trained on" in capsys.readouterr().err


def test_a_run_trained_from_a_url_is_exported(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_run(tmp_path / "runs", "one", Dataset(digits))
    name_data(folder, f"file://{digits}")
    assert run(folder, "--out", tmp_path / "out", "--format", "safetensors") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out/mean.npy"), Dataset(digits).statistics.mean_image)
