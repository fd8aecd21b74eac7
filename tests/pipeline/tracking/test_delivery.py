"""MLflow brought up to date from a run folder: real MLflow, real SQLite; every point once, one MLflow run per training."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.tracking import TrackingConfig, log_evaluations, log_result_run, mlflow_run_id, open_tracker, read_metrics
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.mlflow_store import only_run, points, runs_in, shown, store_uri

OFFLINE = TrackingConfig(mlflow=False)


def tracker(folder: Path, **changes: object) -> Tracker:
    params = {"arch": "resnet18", "batch": 256, "schedule": {"steps": [1, 2], "kind": "steps"}} | changes
    return open_tracker(folder, OFFLINE, name=folder.name, params=params, tags={"git_commit": "abc", "world_size": "2"})


def deliver(folder: Path, killed: bool = False) -> list[str]:
    said: list[str] = []
    Delivery(folder, said.append).deliver(killed=killed)
    return said


def expected(folder: Path, kind: str, name: str) -> list[tuple[int, float, int]]:
    return [
        (r.iteration, shown(r.values[name]), r.time) for r in read_metrics(folder / "metrics.jsonl") if r.kind == kind
    ]


def test_a_run_in_mlflow(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with tracker(folder) as run:
        for iteration in range(1, 1501):
            run.log("train", iteration, {"loss": 1 / iteration, "lr": 0.1})
        run.log("val", 1500, {"top1_error": 12.5})
        (folder / "config.yaml").write_text("arch: resnet18\n")
        run.artifact(folder / "config.yaml")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "1500.pt").write_bytes(bytes(1000))
        run.artifact(folder / "checkpoints" / "1500.pt", "checkpoints")
        run.finish("FINISHED")
    assert deliver(folder) == []
    run = only_run(uri)
    assert (run.info.run_name, run.info.status, run.info.run_id) == ("a", "FINISHED", mlflow_run_id(folder))
    assert run.data.params == {
        "arch": "resnet18",
        "batch": "256",
        "schedule.steps": "[1, 2]",
        "schedule.kind": "steps",
    }
    assert run.data.tags["world_size"] == "2" and run.data.tags["mlflow.source.git.commit"] == "abc"
    for kind, name, count in (("train", "loss", 1500), ("train", "lr", 1500), ("val", "top1_error", 1)):
        stored = points(uri, run.info.run_id, f"{kind}/{name}")
        assert stored == expected(folder, kind, name) and len(stored) == count
    artifacts = runs / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "config.yaml").read_text() == "arch: resnet18\n"
    assert (artifacts / "checkpoints" / "1500.pt").read_bytes() == bytes(1000)
    assert run.info.start_time <= run.info.end_time


def test_everything_sent_again_is_stored_once(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with tracker(folder) as run:
        for iteration in range(600):
            run.log("train", iteration, {"loss": math.sin(iteration), "odd": math.nan if iteration % 2 else -math.inf})
    deliver(folder)
    (folder / "mlflow.json").unlink()  # as if it had been killed after each batch, before it could note so
    deliver(folder)
    run = only_run(uri)
    assert mlflow_run_id(folder) == run.info.run_id
    assert points(uri, run.info.run_id, "train/loss") == expected(folder, "train", "loss")
    odd = points(uri, run.info.run_id, "train/odd")
    assert [step for step, _, _ in odd] == list(range(600))
    assert all(math.isnan(value) if step % 2 else value < -1e308 for step, value, _ in odd)


def test_a_resumed_run_continues_its_mlflow_run(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    run = tracker(folder, batch=256)
    for iteration in range(10):
        run.log("train", iteration, {"loss": iteration / 7})
    assert deliver(folder) == []
    assert only_run(uri).info.status == "RUNNING"
    deliver(folder, killed=True)  # the feeder outlives a run that was killed
    assert only_run(uri).info.status == "KILLED"
    with tracker(folder, batch=512, loader=3) as again:
        assert deliver(folder) == []
        assert only_run(uri).info.status == "RUNNING"
        for iteration in range(5, 20):
            again.log("train", iteration, {"loss": iteration / 7})
        again.finish("FINISHED")
    assert deliver(folder) == []
    stored = only_run(uri)
    assert stored.info.status == "FINISHED"
    assert [(step, value) for step, value, _ in points(uri, stored.info.run_id, "train/loss")] == [
        (i, shown(i / 7)) for i in range(20)
    ]
    assert stored.data.params["batch"] == "256" and stored.data.tags["changed.batch"] == "512"
    assert stored.data.params["loader"] == "3" and "changed.arch" not in stored.data.tags


def test_how_a_run_ended(runs: Path) -> None:
    uri = store_uri(runs)
    with tracker(runs / "left"):
        pass
    with pytest.raises(RuntimeError), tracker(runs / "failed"):
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), tracker(runs / "stopped"):
        raise KeyboardInterrupt
    for name in ("left", "failed", "stopped"):
        deliver(runs / name)
    status = {run.info.run_name: run.info.status for run in runs_in(uri)}
    assert status == {"left": "KILLED", "failed": "FAILED", "stopped": "KILLED"}


def test_a_run_deleted_in_mlflow_is_made_anew_from_the_whole_file(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    run = tracker(folder)
    run.log("train", 1, {"loss": 1.0})
    notices: list[str] = []
    feeding = Delivery(folder, notices.append)
    feeding.deliver()
    first = only_run(uri).info.run_id
    MlflowClient(uri).delete_run(first)
    run.log("train", 2, {"loss": 2.0})
    with pytest.raises(Exception, match="must be in the 'active' state"):
        feeding.deliver()  # while it goes on: this attempt fails, the next looks
    assert notices == []
    feeding.deliver()
    assert len(notices) == 1 and "was deleted" in notices[0]
    second = only_run(uri).info.run_id
    assert second != first and mlflow_run_id(folder) == second
    assert [step for step, _, _ in points(uri, second, "train/loss")] == [1, 2]
    run.close()


def test_another_store_gets_the_whole_run_too(runs: Path, empty_store: Path) -> None:
    folder = runs / "a"
    with tracker(folder) as run:
        run.log("train", 1, {"loss": 1.0})
    deliver(folder)
    shutil.copy(empty_store, runs / "other.db")
    other = f"sqlite:///{runs / 'other.db'}"
    said: list[str] = []
    Delivery(folder, said.append, other).deliver()
    assert len(said) == 1 and "is not yet in" in said[0]
    for uri in (store_uri(runs), other):
        assert len(points(uri, only_run(uri).info.run_id, "train/loss")) == 1


def test_a_deleted_experiment_is_named(runs: Path) -> None:
    client = MlflowClient(store_uri(runs))
    client.delete_experiment(client.create_experiment("resnet"))
    with tracker(runs / "a") as run:
        run.log("train", 1, {"loss": 1.0})
    with pytest.raises(ValueError, match="experiment 'resnet' is deleted: restore it or set"):
        deliver(runs / "a")


def test_the_experiment_is_of_the_machine_learning_kind(runs: Path) -> None:
    with tracker(runs / "a"):
        pass
    deliver(runs / "a")
    experiment = MlflowClient(store_uri(runs)).get_experiment_by_name("resnet")
    # MLflow has no constant for it in Python: its page is what knows the tag.
    pages = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("main.*.js")
    key, value = "mlflow.experimentKind", "custom_model_development"
    assert experiment.tags[key] == value
    assert any(f'"{key}"' in text and f'"{value}"' in text for text in (page.read_text() for page in pages))


def test_artifacts_follow_their_files(runs: Path, tmp_path: Path) -> None:
    folder, outside = runs / "a", tmp_path / "notes.txt"
    outside.write_text("one")
    with tracker(folder) as run:
        run.artifact(outside)
        run.artifact(folder / "gone.pt", "checkpoints")
    assert [line for line in deliver(folder) if "gone.pt was removed" in line]
    stored = runs / "mlartifacts" / str(mlflow_run_id(folder)) / "artifacts" / "notes.txt"
    assert stored.read_text() == "one"
    outside.write_text("two, longer")
    assert deliver(folder) == []  # what is gone is said once
    assert stored.read_text() == "two, longer"


def test_names_that_mlflow_refuses_are_respelt(runs: Path) -> None:
    folder = runs / "a"
    with tracker(folder, **{"odd:key?": "x" * 7000, "a//b": 1}) as run:
        run.log("val/../x", 1, {"10-crop (mean)": 1.0, "/top1": 2.0})
    deliver(folder)
    stored = only_run(store_uri(runs)).data
    assert sorted(stored.metrics.values()) == [1.0, 2.0]
    assert sorted(stored.params.values(), key=len)[-1] == "x" * 6000


def test_an_evaluation_joins_the_trained_run(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with tracker(folder) as run:
        run.log("train", 10, {"loss": 1.0})
        run.finish("FINISHED")
    for error in (9.5, 9.5):
        log_evaluations(folder, OFFLINE, 10, {"val 10-crop": {"top1_error": error}, "val 1-crop": {"top1_error": 9.75}})
    deliver(folder)
    stored = only_run(uri)
    assert stored.info.status == "FINISHED"
    for kind, error in (("val 10-crop", 9.5), ("val 1-crop", 9.75)):
        assert [point[:2] for point in points(uri, stored.info.run_id, f"{kind}/top1_error")] == [(10, error)]


def test_an_ensemble_is_a_run_of_its_own(runs: Path) -> None:
    with tracker(runs / "a") as run:
        run.finish("FINISHED")
    deliver(runs / "a")
    table = runs / "table.txt"
    table.write_text("3.57")
    for _ in range(2):
        log_result_run(
            runs / "ensemble",
            OFFLINE,
            name="ensemble",
            kind="ensemble",
            params={"members": ["a"]},
            metrics={"ten-crop-test": {"top5_error": 3.57}},
            tags={"member_run_ids": str(mlflow_run_id(runs / "a"))},
            artifacts=[table],
        )
        deliver(runs / "ensemble")
    stored = {run.info.run_name: run for run in runs_in(store_uri(runs))}
    assert set(stored) == {"a", "ensemble"}
    data = stored["ensemble"].data
    assert data.metrics == {"ten-crop-test/top5_error": 3.57} and data.params == {"members": '["a"]'}
    assert data.tags["member_run_ids"] == stored["a"].info.run_id


KILLED_DELIVERIES = """
import os, random, signal, sys, time
from pathlib import Path
import mlflow.tracking.client, mlflow.store.tracking.sqlalchemy_store
from pipeline.tracking.delivery import Delivery
folder, random_delay = Path(sys.argv[1]), random.Random(0)
finished = 0
for _ in range(20):
    child = os.fork()
    if not child:
        Delivery(folder, print).deliver()
        os._exit(0)
    time.sleep(random_delay.uniform(0, 0.4))
    os.kill(child, signal.SIGKILL)
    finished += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("killed", 20 - finished)
"""


@pytest.mark.slow
def test_deliveries_killed_at_random_moments(runs: Path) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with tracker(folder) as run:
        for iteration in range(4000):
            run.log("train", iteration, {"loss": iteration / 9})
    command = [sys.executable, "-c", KILLED_DELIVERIES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) >= 3, done.stdout  # it was not over before the first kill
    deliver(folder)
    assert points(uri, only_run(uri).info.run_id, "train/loss") == expected(folder, "train", "loss")


def test_an_ensemble_of_fewer_members_names_no_others(runs: Path) -> None:
    for members in ("abc", "ab"):
        tags = {f"member.{number}": name for number, name in enumerate(members, start=1)}
        log_result_run(runs / "ensemble", OFFLINE, name="ensemble", kind="ensemble", params={}, metrics={}, tags=tags)
        deliver(runs / "ensemble")
    stored = only_run(store_uri(runs)).data.tags
    assert {key for key in stored if key.startswith("member.")} == {"member.1", "member.2"}
