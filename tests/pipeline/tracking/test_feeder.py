"""The feeder process: quiet, never delays a step, ends with the run; survives servers that die or hang, and kills."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import TrackingConfig, open_tracker, read_metrics
from pipeline.tracking.delivery import Delivery
from tests.helpers import alive, wait_for
from tests.patience import limit
from tests.pipeline.tracking.hostile_proxy import Fate, hostile_proxy
from tests.pipeline.tracking.mlflow_app import mlflow_app
from tests.pipeline.tracking.mlflow_server import server
from tests.pipeline.tracking.mlflow_store import only_run, points, shown, store_uri

CONFIG = TrackingConfig(close_seconds=limit(300))


def expected(folder: Path) -> list[tuple[int, float, int]]:
    return [(r.iteration, shown(r.values["loss"]), r.time) for r in read_metrics(folder / "metrics.jsonl")]


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


@pytest.mark.costly("the process beside the run imports MLflow")
def test_a_run_is_fed_while_it_goes_on_without_a_word(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, uri = runs / "a", store_uri(runs)
    with open_tracker(folder, CONFIG, name="a", params={"batch": 256}, tags={"arch": "resnet18"}) as tracker:
        tracker.log("train", 1, {"loss": 1.0})
        wait_for(lambda: _status(folder) == "RUNNING", "first delivery", 250)
        run = only_run(uri)
        assert run.info.status == "RUNNING" and run.data.metrics == {"train/loss": 1.0}
        tracker.log("train", 2, {"loss": 0.5})
        tracker.finish("FINISHED")
    run = only_run(uri)
    assert run.info.status == "FINISHED" and run.data.params == {"batch": "256"}
    assert points(uri, run.info.run_id, "train/loss") == expected(folder)
    assert capfd.readouterr() == ("", "")


LOGGING = """
import os, signal, sys, time
from pathlib import Path
from pipeline.tracking import TrackingConfig, open_tracker
config = TrackingConfig(close_seconds=float(sys.argv[4]))
with open_tracker(Path(sys.argv[1]), config, name="a", params={}, tags={}) as tracker:
    if "fork" in sys.argv and not os.fork():
        signal.pause()  # a sibling that outlives the run and holds its pipes open
    for iteration in range(int(sys.argv[2]), int(sys.argv[3])):
        tracker.log("train", iteration, {"loss": iteration / 7})
        time.sleep(0.001)
    tracker.finish("FINISHED")
"""


def logging(folder: Path, start: int, stop: int) -> list[str]:
    return [sys.executable, "-c", LOGGING, str(folder), str(start), str(stop), str(limit(300))]


@pytest.mark.waits
@pytest.mark.costly("the process beside each run imports MLflow")
@pytest.mark.parametrize("attempts", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments(runs: Path, attempts: int) -> None:
    """Kill the run alone, after which its feeder must report KILLED and end, and the run together with its feeder."""
    folder, uri = runs / "a", store_uri(runs)
    draw, reached, lines = random.Random(0), 0, folder / "metrics.jsonl"
    for attempt in range(attempts):
        command = logging(folder, max(0, reached - 100), 1_000_000)
        process = subprocess.Popen(command + ["fork"] * (attempt == 2), start_new_session=True)
        try:
            wait_for(
                lambda at=reached: lines.exists() and lines.read_bytes().count(b"\n") > at + 20, "first lines", 120
            )
            time.sleep(draw.uniform(0, 1.0))
            feeder = _first_child(process.pid)
            if attempt == 2:
                _signal_as_schedulers_do(feeder)
            os.killpg(process.pid, signal.SIGKILL) if attempt % 2 else process.kill()
            if attempt == 2:
                wait_for(lambda pid=feeder: not alive(pid), "the end of a killed run's feeder", 280)
                assert only_run(uri).info.status == "KILLED"
                os.killpg(process.pid, signal.SIGKILL)  # the sibling
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.wait()
        reached = len(expected(folder))
    subprocess.run(logging(folder, max(0, reached - 100), reached + 50), check=True)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in written] == [(i, i / 7) for i in range(reached + 50)]
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert points(uri, run.info.run_id, "train/loss") == expected(folder)


KILLED_AS_IT_STARTS = """
import os, signal, sys
from pathlib import Path
from pipeline.tracking import TrackingConfig, open_tracker
tracker = open_tracker(Path(sys.argv[1]), TrackingConfig(close_seconds=float(sys.argv[2])), name="a", params={}, tags={})
print(tracker.feeder.process.pid, flush=True)
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
signal.pause()  # a sibling that holds the pipes open
"""


@pytest.mark.costly("the process beside the run imports MLflow")
def test_a_run_killed_as_it_starts(runs: Path) -> None:
    """The run is gone before the feeder has started Python: the feeder must end, too."""
    command = [sys.executable, "-c", KILLED_AS_IT_STARTS, str(runs / "a"), str(limit(300))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        feeder = int(process.stdout.readline())
        try:
            assert process.wait() == -signal.SIGKILL
            wait_for(lambda: not alive(feeder), "the end of a killed run's feeder", 280)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert only_run(store_uri(runs)).info.status == "KILLED"


def _signal_as_schedulers_do(feeder: int) -> None:
    """Signals that a scheduler sends to all processes of a job are for the run alone."""
    sent = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in sent:
        os.kill(feeder, number)
    (pending,) = (
        line for line in Path(f"/proc/{feeder}/status").read_text().splitlines() if line.startswith("ShdPnd:")
    )
    waiting = int(pending.split()[1], 16)
    assert all(waiting & 1 << number - 1 for number in sent), "one was taken"
    assert alive(feeder)


def _first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _status(folder: Path) -> str:
    try:
        return json.loads((folder / "mlflow.json").read_text())["status"]
    except FileNotFoundError:
        return ""


@pytest.mark.slow
def test_a_server_that_hangs_dies_and_comes_back(
    runs: Path, port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "a"
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    iteration = 0

    def log() -> None:
        """Log 200 lines, for none of which this process may talk to a server."""
        nonlocal iteration
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("logging connects to something"))
            for _ in range(200):
                tracker.log("train", iteration, {"loss": iteration / 3})
                iteration += 1
                time.sleep(0.005)
        assert len(expected(folder)) == iteration

    with server(runs, port) as process:
        tracker = open_tracker(folder, TrackingConfig(close_seconds=3.0), name="a", params={}, tags={})
        log()
        wait_for(lambda: _status(folder) == "RUNNING", "first delivery", 250)
        (folder / "config.yaml").write_text("a: 1")
        tracker.artifact(folder / "config.yaml")
        os.killpg(process.pid, signal.SIGSTOP)
        log()
        os.killpg(process.pid, signal.SIGCONT)
        wait_for(lambda: (runs / "mlartifacts").exists(), "delivery after the hang", 250)
    with tracker:
        log()
        tracker.finish("FINISHED")
    # On a slow machine the outages are long enough to be told of, too.
    outages = ("MLflow does not accept the metrics", "MLflow responds again")
    (said,) = (line for line in capfd.readouterr().err.splitlines() if not line.startswith(outages))
    assert f"MLflow at {uri} has not taken" in said and "the status FINISHED of run a" in said
    assert "python -m pipeline.tracking sync" in said

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


@pytest.mark.waits
@pytest.mark.costly("MLflow's server here, and the process beside the run imports MLflow")
def test_an_mlflow_that_is_busy_at_the_end_is_asked_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It answers 429 to what the first two deliveries ask, each of them twice, and to the first that the third asks."""
    fates: Iterator[Fate] = itertools.chain(["429"] * 5, itertools.repeat("ok"))
    with mlflow_app(store_uri(runs), runs) as upstream, hostile_proxy(upstream, lambda: next(fates)) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy}")
        with open_tracker(runs / "a", CONFIG, name="a", params={}, tags={}) as tracker:
            tracker.log("train", 1, {"loss": 1.0})
            tracker.finish("FINISHED")
    run = only_run(store_uri(runs))
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 1.0}
    assert "too many 429" in (runs / "a" / "logs/mlflow.log").read_text()
    assert "has not taken" not in capfd.readouterr().err


def test_open_names_the_page_of_each_experiment(runs: Path, port: int) -> None:
    for name, experiment in (("a", "one"), ("b", "two"), ("c", "two")):
        config = TrackingConfig(mlflow=False, experiment=experiment)
        with open_tracker(runs / name, config, name=name, params={}, tags={}):
            pass
        Delivery(runs / name, print).deliver()
    command = [sys.executable, "-m", "pipeline.tracking", "open", str(runs), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = [next(process.stderr).strip() for _ in range(3)]
        os.killpg(process.pid, signal.SIGKILL)
    client = MlflowClient(store_uri(runs))
    ids = {name: client.get_experiment_by_name(name).experiment_id for name in ("one", "two")}
    query = "workflowType=machine_learning&viewStateShareKey=errors"
    pages = [f"{name}: http://127.0.0.1:{command[-1]}/#/experiments/{one}/runs?{query}" for name, one in ids.items()]
    assert said == ["MLflow opens in some seconds (Ctrl-C ends it):", *pages]


def test_commands_refuse_what_they_cannot_do(runs: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, sentence in (
            (["sync", str(runs)], f"{runs} is not the folder of a tracked run: give one like runs/resnet50-seed0"),
            (
                ["open", str(tmp_path)],
                f"{tmp_path} holds no run that MLflow could show: give the folder that holds the",
            ),
            (["open", str(runs), "--port", port], f"port {port} cannot be used (Address already in use): choose"),
        ):
            command = [sys.executable, "-m", "pipeline.tracking", *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and done.stdout == ""
            assert done.stderr.count("\n") == 1
