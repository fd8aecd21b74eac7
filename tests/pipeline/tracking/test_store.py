"""Which MLflow a run belongs to: copied and moved folders, odd names; nothing is written into the old place."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_cache

from pipeline.base.command import UserError
from pipeline.tracking import TrackingConfig, log_evaluations, log_result_run, mlflow_run_id, open_tracker
from pipeline.tracking.connection import mlflow_of
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.store import mend, store_in, store_of
from tests.pipeline.tracking.mlflow_store import only_run, points, runs_in, store_uri

OFFLINE = TrackingConfig(mlflow=False)


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow remembers in each process where a run's artifacts are; what is copied or moved meets a new process."""

    class Nothing(dict[str, object]):
        def get(self, *_: object) -> None:
            return None

    monkeypatch.setattr(mlflow_cache, "_artifact_repos_cache", Nothing())


def train(runs: Path, name: str = "a") -> Path:
    """A finished run with an artifact, delivered into the store beside it."""
    folder = runs / name
    with open_tracker(folder, OFFLINE, name=name, params={"batch": 2}, tags={"arch": "resnet8"}) as run:
        for iteration in range(1, 31):
            run.log("train", iteration, {"loss": 1 / iteration})
        (folder / "config.yaml").write_text("arch: resnet8\n")
        run.artifact(folder / "config.yaml")
        run.finish("FINISHED")
    Delivery(folder, print).deliver()
    return folder


def content(place: Path) -> dict[str, str]:
    """Each file below a folder, and the hash of its bytes."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def artifacts(runs: Path, run_id: str) -> list[str]:
    """The artifacts of a run, read through the store beside it."""
    return [one.path for one in MlflowClient(store_in(runs).uri).list_artifacts(run_id)]


def use_everything(runs: Path) -> None:
    """What users do to a run that has ended: evaluate, make an ensemble, register."""
    folder = runs / "a"
    (folder / "scores").mkdir(exist_ok=True)
    (folder / "scores" / "one.npz").write_bytes(b"scores")
    new = [(folder / "scores" / "one.npz", "scores")]
    log_evaluations(folder, OFFLINE, 30, {"center-val": {"top1_error": 12.5}}, new)
    Delivery(folder, print).deliver()
    tags = {"arch": "ensemble", "member.1": f"a ({mlflow_run_id(folder)})"}
    log_result_run(
        runs / "e",
        OFFLINE,
        name="e",
        kind="ensemble",
        params={},
        metrics={},
        tags=tags,
        artifacts=[folder / "config.yaml"],
    )
    Delivery(runs / "e", print).deliver()
    uri, run_id = mlflow_of(folder, None)
    client = MlflowClient(uri, registry_uri=uri)
    client.log_text(str(run_id), "weights", "export/model.txt")
    client.create_registered_model("net")
    client.create_model_version("net", source=f"runs:/{run_id}/export", run_id=run_id)


@pytest.mark.parametrize("old", ["there", "gone", "without its store"])
def test_a_copied_or_moved_folder_is_used_where_it_is(runs: Path, tmp_path: Path, old: str) -> None:
    run_id = str(mlflow_run_id(train(runs)))
    client = MlflowClient(store_uri(runs))
    client.set_tag(run_id, "remark", "the good one")
    new = tmp_path / "new place" / "runs"
    new.parent.mkdir()
    if old == "gone":
        runs.rename(new)
    else:
        shutil.copytree(runs, new)
    if old == "without its store":
        (runs / "mlflow.db").unlink()
    before = content(runs)
    use_everything(new)
    assert content(runs) == before and runs.exists() == (old != "gone")
    assert mlflow_run_id(new / "a") == run_id  # the same run, with what the user added
    stored = {run.info.run_name: run for run in runs_in(store_uri(new))}
    assert set(stored) == {"a", "e"} and stored["a"].data.tags["remark"] == "the good one"
    assert len(points(store_uri(new), run_id, "train/loss")) == 30
    assert set(artifacts(new, run_id)) == {"config.yaml", "scores", "export"}
    kept = new / "mlartifacts" / run_id / "artifacts"
    assert (kept / "config.yaml").read_text() == "arch: resnet8\n" and (kept / "scores" / "one.npz").exists()
    assert (kept / "export" / "model.txt").read_text() == "weights"
    assert artifacts(new, stored["e"].info.run_id) == ["config.yaml"]


def test_a_moved_store_that_cannot_be_written_is_said_in_a_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(runs)
    moved = runs.rename(tmp_path / "moved")
    monkeypatch.setattr("pipeline.tracking.store.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(moved / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"mlflow.db .* cannot be written \(database is locked\)"):
            mend(store_in(moved))
    assert mend(store_in(moved)) == [runs / "mlartifacts"]


def test_models_that_were_registered_before_the_move_are_found(runs: Path, tmp_path: Path) -> None:
    train(runs)
    uri, run_id = mlflow_of(runs / "a", None)
    registry = MlflowClient(uri, registry_uri=uri)
    registry.create_registered_model("net")
    registry.create_model_version("net", source=f"runs:/{run_id}/export", run_id=run_id)
    # A logged model, and a version of a model that was registered by its place; others name their run, which stays.
    old, run = (runs / "mlartifacts").as_uri(), only_run(store_uri(runs))
    client = MlflowClient(store_uri(runs))
    logged = client.create_logged_model(run.info.experiment_id, name="net", source_run_id=run.info.run_id)
    client.create_model_version("net", source=f"{old}/{run.info.run_id}/artifacts/export")
    assert logged.artifact_location.startswith(f"{old}/")
    moved = runs.rename(tmp_path / "moved")
    assert mend(store_in(moved)) == [runs / "mlartifacts"] and mend(store_in(moved)) == []
    client, new = MlflowClient(store_uri(moved)), (moved / "mlartifacts").as_uri()
    assert client.get_logged_model(logged.model_id).artifact_location == logged.artifact_location.replace(old, new)
    assert client.get_model_version_download_uri("net", "1").startswith("runs:/")
    assert client.get_model_version_download_uri("net", "2") == f"{new}/{run.info.run_id}/artifacts/export"


def test_artifacts_that_were_not_copied_are_sent_again(runs: Path, tmp_path: Path) -> None:
    run_id = str(mlflow_run_id(train(runs)))
    shutil.copytree(runs, tmp_path / "new", ignore=shutil.ignore_patterns("mlartifacts"))
    Delivery(tmp_path / "new" / "a", print).deliver()
    assert artifacts(tmp_path / "new", run_id) == ["config.yaml"]


def test_a_store_copied_before_its_runs_gets_the_lines_between(runs: Path, tmp_path: Path, empty_store: Path) -> None:
    """rsync of a training that goes on copies mlflow.db first, and metrics.jsonl and mlflow.json some lines later."""
    folder = runs / "a"
    with open_tracker(folder, OFFLINE, name="a", params={}, tags={}) as run:
        run.log("train", 1, {"loss": 1.0})
        Delivery(folder, print).deliver()
        shutil.copy(runs / "mlflow.db", tmp_path / "early.db")
        run.log("train", 2, {"loss": 0.5})
        Delivery(folder, print).deliver()
    new = Path(shutil.copytree(runs, tmp_path / "new"))
    shutil.move(tmp_path / "early.db", new / "mlflow.db")
    Delivery(new / "a", print).deliver()
    run_id = only_run(store_uri(new)).info.run_id
    assert [step for step, _, _ in points(store_uri(new), run_id, "train/loss")] == [1, 2]


def test_run_folders_without_their_store_are_sent_to_a_new_one(runs: Path, tmp_path: Path, empty_store: Path) -> None:
    run_id = mlflow_run_id(train(runs))
    new = tmp_path / "new"
    new.mkdir()
    shutil.copytree(runs / "a", new / "a")
    shutil.copy(empty_store, new / "mlflow.db")
    before = content(runs)
    Delivery(new / "a", print).deliver()
    assert content(runs) == before
    assert mlflow_run_id(new / "a") not in (run_id, None)
    assert artifacts(new, str(mlflow_run_id(new / "a"))) == ["config.yaml"]


def test_a_folder_under_two_names_is_left_alone(runs: Path, tmp_path: Path) -> None:
    train(runs)
    (tmp_path / "link").symlink_to(runs)
    assert mend(store_in(tmp_path / "link")) == []
    before = (runs / "mlflow.db").read_bytes()
    os.rename(runs, tmp_path / "elsewhere")  # as a mount under another name: the old name shows the same folder
    runs.symlink_to(tmp_path / "elsewhere")
    assert mend(store_in(tmp_path / "elsewhere")) == []
    assert (tmp_path / "elsewhere" / "mlflow.db").read_bytes() == before


def test_a_configured_store_may_keep_artifacts_beside_its_runs(runs: Path, tmp_path: Path) -> None:
    """`MLFLOW_TRACKING_URI=sqlite:////data/runs/mlflow.db` with run folders elsewhere: no folder has moved."""
    folder = tmp_path / "other" / "b"
    config = TrackingConfig(mlflow=False, uri=store_uri(runs))
    with open_tracker(folder, config, name="b", params={}, tags={}) as run:
        (folder / "config.yaml").write_text("b")
        run.artifact(folder / "config.yaml")
    Delivery(folder, print).deliver()
    assert mend(store_in(runs)) == []
    assert (tmp_path / "other" / "mlartifacts" / str(mlflow_run_id(folder)) / "artifacts" / "config.yaml").exists()


@pytest.mark.parametrize("name", ["r x", "r#x", "r%20x", "r?x=1", "ü 100% [a]"])
def test_folders_with_odd_names(tmp_path: Path, empty_store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    runs = tmp_path / name
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    run_id = str(mlflow_run_id(train(runs)))
    with sqlite3.connect(runs / "mlflow.db") as database:
        assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(run_id,)]
    assert artifacts(runs, run_id) == ["config.yaml"]
    assert (runs / "mlartifacts" / run_id / "artifacts" / "config.yaml").exists()
    assert sorted(path.name for path in runs.iterdir()) == ["a", "mlartifacts", "mlflow.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "tmp"])


@pytest.mark.costly("MLflow takes CPU seconds to make a store")
def test_a_store_is_made_in_a_folder_with_an_odd_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    train(tmp_path / "r%3F?x")
    assert sorted(path.name for path in (tmp_path / "r%3F?x").iterdir()) == ["a", "mlartifacts", "mlflow.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r%3F?x", "tmp"]
    assert len(list((tmp_path / "tmp").glob("*/*"))) == 1  # the link to the folder


def test_a_password_is_not_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(uri: str | None) -> Any:
        return store_of(tmp_path / "runs" / "a", uri).name

    assert name("https://me:secret@mlflow.example.org/x") == "https://mlflow.example.org/x"
    assert name("sqlite:////me@work/mlflow.db") == "sqlite:////me@work/mlflow.db"
    assert name(None) == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me@there:5000")
    assert name(None) == "http://there:5000"
