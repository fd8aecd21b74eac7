"""The process beside a run: quiet, never in the step's way, ends with the run; servers that die or hang; kills at any time."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launch.local import free_port
from pipeline.tracking import TrackingConfig, open_tracker, read_metrics
from pipeline.tracking.delivery import Delivery
from tests.pipeline.tracking.mlflow_store import only_run, points, store_uri

CONFIG = TrackingConfig(close_seconds=60.0)


def expected(folder: Path) -> list[tuple[int, float, int]]:
    return [(r.iteration, r.values["loss"], r.time) for r in read_metrics(folder / "metrics.jsonl")]


def wait_for(condition: object, what: str, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


IMPORTS = """
import sys
from pathlib import Path
from pipeline.tracking import TrackingConfig, open_tracker
with open_tracker(Path(sys.argv[1]), TrackingConfig(), name="a", params={}, tags={}, enabled=False) as tracker:
    tracker.log("train", 1, {"loss": 1.0})
    tracker.artifact(Path(sys.argv[0]))
    tracker.fsync()
    tracker.finish("FINISHED")
with open_tracker(Path(sys.argv[1]) / "b", TrackingConfig(mlflow=False), name="b", params={}, tags={}) as tracker:
    tracker.log("train", 1, {"loss": 1.0})
print([name for name in ("mlflow", "torch", "sqlalchemy") if name in sys.modules])
"""


def test_other_ranks_write_nothing_and_nobody_imports_mlflow(tmp_path: Path) -> None:
    with open_tracker(tmp_path / "x", CONFIG, name="x", params={}, tags={}, enabled=False) as tracker:
        tracker.log("train", 1, {"loss": 1.0})
        tracker.artifact(tmp_path)
        tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_a_run_is_fed_while_it_goes_on_without_a_word(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with open_tracker(folder, CONFIG, name="a", params={"batch": 256}, tags={"arch": "resnet18"}) as tracker:
        tracker.log("train", 1, {"loss": 1.0})
        status = folder / "mlflow.json"
        wait_for(lambda: status.exists() and json.loads(status.read_text())["status"] == "RUNNING", "first delivery")
        run = only_run(uri)
        assert run.info.status == "RUNNING" and run.data.metrics == {"train/loss": 1.0}
        tracker.log("train", 2, {"loss": 0.5})
        tracker.finish("FINISHED")
    run = only_run(uri)
    assert run.info.status == "FINISHED" and run.data.params == {"batch": "256"}
    assert points(uri, run.info.run_id, "train/loss") == expected(folder)
    assert capfd.readouterr() == ("", "")


LOGGING = """
import os, sys, time
from pathlib import Path
from pipeline.tracking import TrackingConfig, open_tracker
with open_tracker(Path(sys.argv[1]), TrackingConfig(), name="a", params={}, tags={}) as tracker:
    if "fork" in sys.argv and not os.fork():
        time.sleep(90)  # a sibling that outlives the run and holds its pipes open
    for iteration in range(int(sys.argv[2]), int(sys.argv[3])):
        tracker.log("train", iteration, {"loss": iteration / 7})
        time.sleep(0.001)
    tracker.finish("FINISHED")
"""


def test_runs_killed_at_random_moments(runs: Path) -> None:
    """Kills of the run alone, whose feeder must then say so and go, and of the run and its feeder together."""
    folder, uri = runs / "a", store_uri(runs)
    draw, reached = random.Random(0), 0
    for attempt in range(6):
        command = [sys.executable, "-c", LOGGING, str(folder), str(max(0, reached - 100)), "1000000"]
        process = subprocess.Popen(command + ["fork"] * (attempt == 4), start_new_session=True)
        try:
            wait_for(lambda at=reached: len(expected(folder)) > at + 20, "first lines")
            time.sleep(draw.uniform(0, 1.0))
            feeder = _first_child(process.pid)
            if attempt == 4:
                _signal_as_schedulers_do(feeder)
            os.killpg(process.pid, signal.SIGKILL) if attempt % 2 else process.kill()
            if attempt == 4:
                wait_for(lambda pid=feeder: not alive(pid), "the end of a killed run's feeder")
                assert only_run(uri).info.status == "KILLED"
                os.killpg(process.pid, signal.SIGKILL)  # the sibling
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.wait()
        reached = len(expected(folder))
    subprocess.run([sys.executable, "-c", LOGGING, str(folder), str(reached - 100), str(reached + 50)], check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(i, i / 7) for i in range(reached + 50)]
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert points(uri, run.info.run_id, "train/loss") == expected(folder)


def _signal_as_schedulers_do(feeder: int) -> None:
    """What is sent to all processes of a job is for the run alone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(feeder, number)
    time.sleep(0.2)
    assert alive(feeder)


def _first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _status(folder: Path) -> str:
    try:
        return json.loads((folder / "mlflow.json").read_text())["status"]
    except FileNotFoundError:
        return ""


@contextmanager
def server(runs: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server on the store in `runs`, by the command that users open it with."""
    command = [sys.executable, "-m", "pipeline.tracking", "open", str(runs), "--port", str(port)]
    with open(runs / "server.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is None and _answers(port), "the MLflow server")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_that_hangs_dies_and_comes_back(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "a"
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    seconds: dict[str, list[float]] = {}
    iteration = 0

    def log(what: str) -> None:
        nonlocal iteration
        for _ in range(200):
            started = time.perf_counter()
            tracker.log("train", iteration, {"loss": iteration / 3})
            seconds.setdefault(what, []).append(time.perf_counter() - started)
            iteration += 1
            time.sleep(0.005)

    with server(runs, port) as process:
        tracker = open_tracker(folder, TrackingConfig(close_seconds=3.0), name="a", params={}, tags={})
        log("up")
        wait_for(lambda: _status(folder) == "RUNNING", "first delivery")
        (folder / "config.yaml").write_text("a: 1")
        tracker.artifact(folder / "config.yaml")
        os.killpg(process.pid, signal.SIGSTOP)
        log("hung")
        os.killpg(process.pid, signal.SIGCONT)
        wait_for(lambda: (runs / "mlartifacts").exists(), "delivery after the hang")
    with tracker:
        log("dead")
        tracker.finish("FINISHED")
    said = capfd.readouterr().err
    assert f"MLflow at {uri} has not taken" in said and "the status FINISHED of run a" in said
    assert said.count("\n") == 1 and "python -m pipeline.tracking sync" in said
    assert statistics.median(seconds["hung"]) < 0.005 and statistics.median(seconds["dead"]) < 0.005
    assert max(seconds["hung"] + seconds["dead"]) < 0.5  # a call to a dead server takes seconds

    sync = [sys.executable, "-m", "pipeline.tracking", "sync", str(folder), "--json"]
    refused = subprocess.run(sync, capture_output=True, text=True)
    assert refused.returncode == 2 and "(connection refused)" in refused.stderr.splitlines()[-1]
    with server(runs, port):
        done = subprocess.run(sync, capture_output=True, text=True, check=True)
        (figures,) = json.loads(done.stdout.splitlines()[-1])["runs"]
        assert figures["left"] == 0 and figures["sent"] > 0
        run = only_run(uri)
        assert run.info.status == "FINISHED" and figures["mlflow_run"] == run.info.run_id
        stored = points(uri, run.info.run_id, "train/loss")
    assert stored == expected(folder) and [step for step, _, _ in stored] == list(range(600))
    assert len(list((runs / "mlartifacts").rglob("config.yaml"))) == 1


def test_open_names_the_page_of_each_experiment(runs: Path) -> None:
    for name, experiment in (("a", "one"), ("b", "two"), ("c", "two")):
        config = TrackingConfig(mlflow=False, experiment=experiment)
        with open_tracker(runs / name, config, name=name, params={}, tags={}):
            pass
        Delivery(runs / name, print).deliver()
    command = [sys.executable, "-m", "pipeline.tracking", "open", str(runs), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = [next(process.stderr).strip() for _ in range(3)]
        os.killpg(process.pid, signal.SIGKILL)
    client = MlflowClient(store_uri(runs))
    ids = [client.get_experiment_by_name(name).experiment_id for name in ("one", "two")]
    pages = [f"http://127.0.0.1:{command[-1]}/#/experiments/{one}?workflowType=machine_learning" for one in ids]
    assert said[0].startswith("MLflow opens in some seconds (Ctrl-C ends it).") and said[1:] == pages


def test_commands_refuse_what_they_cannot_do(runs: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, sentence in (
            (["sync", str(runs)], f"{runs} is not the folder of a tracked run: give one like runs/resnet50-seed0"),
            (["open", str(tmp_path)], f"{tmp_path / 'mlflow.db'} does not exist: give the folder that holds the run"),
            (["open", str(runs), "--port", port], f"port {port} cannot be used (Address already in use): choose"),
        ):
            command = [sys.executable, "-m", "pipeline.tracking", *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and done.stdout == ""
            assert done.stderr.count("\n") == 1
