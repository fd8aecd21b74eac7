"""python -m pipeline.export: every file gives the net's own answers, read by its own library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import export
from pipeline.base import command
from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
from pipeline.evaluation.scores import Scores, load, save
from pipeline.handover.model_card import summary
from pipeline.handover.training_data import TrainingData
from pipeline.run.starting_point import StartingPoint
from pipeline.tracking import TrackingConfig, mlflow_model_id, mlflow_run_id, open_tracker
from pipeline.tracking.delivery import Delivery
from tests.pages import Page
from tests.pipeline.evaluation.nets_and_images import (
    changed_copy,
    decoded,
    name_data,
    provenance,
    random_softmax,
    slow_softmax,
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
    names = ["README.md", "classes.txt", "mean.npy", "model.onnx", "model.pt2", "model.safetensors"]
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
    assert f"| training data | test: 150 images of 10 classes, manifest SHA-256 `{ten_classes.sha256}` |" in card
    assert scores.provenance.weights_sha256 in card
    assert "arch: resnet8" in card and "batch: 16" in card
    assert str(folder.parent) not in card, "no folders of this machine"


def test_the_card_tells_what_the_net_started_from(ten_classes: Dataset, tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fine", ten_classes)
    trained = open_checkpoint(find_checkpoint(folder), "final")
    assert trained is not None
    data = TrainingData.of(ten_classes, 32, "mean-image")
    assert "started from" not in summary(trained, data, [])
    start = StartingPoint(
        init=str(tmp_path / "best"),
        file="x",
        weights="final",
        iteration=3,
        sha256="ab" * 32,
        taken=5,
        of=5,
        left_out={},
    )
    facts = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    (folder / "run.json").write_text(json.dumps({**facts, "starts_from": start.as_fact()}))
    card = summary(trained, data, [])
    told = "| started from | best (iteration 3, final weights, SHA-256 abababababababab...): 5 of 5 tensors |"
    assert told in card.replace("\\", "")
    assert str(tmp_path) not in card, "no folders of this machine"


def test_every_file_names_the_classes(exported: tuple[Path, Path]) -> None:
    expected, out = [f"n{number:08d}" for number in range(10)], exported[1]
    assert (out / "classes.txt").read_text().splitlines() == expected
    with safe_open(out / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == expected
    extra = {"classes": ""}
    torch.export.load(out / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes"]) == expected
    (entry,) = (one for one in onnx.load(out / "model.onnx").metadata_props if one.key == "classes")
    assert json.loads(entry.value) == expected


def test_readable_names_are_taken_where_the_dataset_has_them(
    ten_classes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def named(manifest: dict[str, Any]) -> None:
        manifest["classes"][3]["name"] = "tench, Tinca tinca"

    dataset = changed_copy(ten_classes, tmp_path / "named", named)
    folder = write_run(tmp_path / "runs", "one", dataset)
    assert run(folder, "--out", tmp_path / "out", "--format", "safetensors") == 0
    assert (tmp_path / "out/classes.txt").read_text().splitlines()[2:4] == ["n00000002", "tench, Tinca tinca"]
    assert "n00000002, tench, Tinca tinca, n00000004" in (tmp_path / "out/README.md").read_text()


def test_the_cards_snippets_run_as_they_are_printed(
    exported: tuple[Path, Path],
    ten_classes: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first makes a picture into `images`, each of the others names it as `pipeline.predict` does."""
    from pipeline import predict

    folder = shutil.copytree(exported[1], tmp_path / "downloaded")
    (folder / "picture.jpg").write_bytes(ten_classes.split("train").read(5))
    predict.main([str(exported[0]), str(folder / "picture.jpg"), "--top", "1", "--json", "--device", "cpu"])
    (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"][0]["classes"]
    blocks = [code for language, code in Page(folder / "README.md").blocks if language == "python"]
    assert len(blocks) == 4
    monkeypatch.chdir(folder)
    net = open_checkpoint(find_checkpoint(exported[0]), "final").net
    expected = slow_softmax(net, decoded(ten_classes)[5], "center", 36, 32, ten_classes.statistics.mean_image)
    for block in blocks[1:]:
        names: dict[str, Any] = {}
        exec(blocks[0], names)
        exec(block, names)
        assert capsys.readouterr().out.split() == [told["class"]]
        np.testing.assert_allclose(names["scores"][0], expected, atol=1e-5)
    assert abs(expected.max() - told["score"]) < 0.05, "DALI's pixels are not quite Pillow's"


def test_a_file_that_differs_is_removed(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: {k: v + 1 for k, v in load_file(path).items()})
    assert run(made_run, "--out", tmp_path / "out", "--format", "safetensors") == 2
    assert "differed from the net" in capsys.readouterr().err
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.fixture
def tracked_run(made_run: Path, empty_store: Path) -> Path:
    """A finished run that MLflow knows; it finished before trainings wrote a model folder."""
    shutil.copy(empty_store, made_run.parent)
    text = (made_run / "config.yaml").read_text()
    (made_run / "config.yaml").write_text(text.replace("mlflow: false", "mlflow: true"))
    with open_tracker(made_run, TrackingConfig(mlflow=False), name="one", params={}, tags={}) as tracker:
        tracker.finish("FINISHED")
    Delivery(made_run, print).deliver()
    return made_run


@pytest.fixture
def mlflow_client(tracked_run: Path) -> Iterator[Any]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tracked_run.parent}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
@pytest.mark.costly("MLflow saves, registers and loads a net, and a feeder of its own delivers the model folder")
def test_a_net_is_registered_with_its_card_under_aliases(
    tracked_run: Path, ten_classes: Dataset, mlflow_client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    own = open_checkpoint(find_checkpoint(tracked_run), "final").weights_sha256
    table = random_softmax(np.random.default_rng(1), 150, 10)
    made = provenance("ten-crop", split="train", weights_sha256=own, dataset_sha256=ten_classes.sha256)
    scores = Scores(scores=table, ids=np.arange(150), labels=ten_classes.split("train").labels, provenance=made)
    save(scores, tracked_run / "scores/ten-crop-train-00000100.npz")
    arguments = ["--register", "resnet8", "--alias", "best", "--alias", "ensemble-member", "--format", "torch-export"]
    assert run(tracked_run, "--out", tmp_path / "out", *arguments, "--json") == 0
    output = capsys.readouterr().out
    assert "Registered in MLflow as resnet8, version 1, best, ensemble-member." in output
    assert json.loads(output.splitlines()[-1])["version"] == "1"

    version = mlflow_client.get_model_version_by_alias("resnet8", "best")
    assert version.run_id == mlflow_run_id(tracked_run)
    assert version.tags["ten-crop-train.top1_error"] == f"{scores.errors(1):.2f}"
    tags = {"arch": "resnet8", "run": "one", "weights_sha256": own, "dataset": "test", "iteration": "100"}
    assert tags.items() <= version.tags.items() and version.tags["dataset_sha256"] == ten_classes.sha256
    assert f"| train | 150 | ten-crop | {scores.errors(1):.2f} |" in version.description
    assert "test (10 classes)" in mlflow_client.get_registered_model("resnet8").description

    loaded = mlflow.pytorch.load_model("models:/resnet8@ensemble-member")
    answers = own_answers(tracked_run, ten_classes)
    np.testing.assert_allclose(loaded(torch.from_numpy(pixels(ten_classes))).detach().numpy(), answers, atol=1e-5)
    function = mlflow.pyfunc.load_model("models:/resnet8@best")
    np.testing.assert_allclose(function.predict(pixels(ten_classes)), answers, atol=1e-5)
    assert function.metadata.metadata["classes"][3] == "n00000003"
    (listed,) = tracked_run.parent.rglob("extra_files/classes.txt")
    assert listed.read_text().splitlines()[3] == "n00000003"
    # The run's logged model says where it is registered.
    model = mlflow_client.get_logged_model(mlflow_model_id(tracked_run))
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "resnet8", "version": "1"}]
    assert version.tags["logged_model"] == model.model_id

    # The same weights again are the same version, with what is known of it by now.
    (tracked_run / "scores/ten-crop-train-00000100.npz").unlink()
    assert (
        run(
            tracked_run, "--out", tmp_path / "out", "--register", "resnet8", "--alias", "new", "--format", "safetensors"
        )
        == 0
    )
    assert "version 1, new: that version had these weights already" in capsys.readouterr().out
    again = mlflow_client.get_model_version_by_alias("resnet8", "new")
    assert again.version == version.version and "Not evaluated yet" in again.description


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
