"""MLflow's store made by the first run, or by several at once, or by one that is killed at it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.mlflow_store import only_run, points, runs_in, store_uri


def trained(folder: Path) -> Tracker:
    return open_tracker(folder, TrackingConfig(mlflow=False), name=folder.name, params={}, tags={})


FIRST_DELIVERIES = """
import os, sys
from pathlib import Path
import mlflow.tracking.client
from pipeline.tracking.delivery import Delivery
children = []
for name in ("a", "b", "c"):
    children.append(os.fork())
    if not children[-1]:
        for attempt in range(10):
            try:
                Delivery(Path(sys.argv[1]) / name, print).deliver()
                os._exit(0)
            except Exception as error:
                print(error)
        os._exit(1)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
"""


def test_runs_that_make_the_store_at_the_same_time(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        with trained(tmp_path / name) as run:
            for iteration in range(300):
                run.log("train", iteration, {"loss": 1.0})
    subprocess.run([sys.executable, "-c", FIRST_DELIVERIES, str(tmp_path)], check=True)
    uri = store_uri(tmp_path)
    assert sorted(run.info.run_name for run in runs_in(uri)) == ["a", "b", "c"]
    for run in runs_in(uri):
        assert len(points(uri, run.info.run_id, "train/loss")) == 300


@pytest.mark.parametrize(
    "seconds", [0.3, pytest.param(0.6, marks=pytest.mark.slow), pytest.param(1.2, marks=pytest.mark.slow)]
)
def test_a_run_killed_while_it_made_the_store(tmp_path: Path, seconds: float) -> None:
    with trained(tmp_path / "a") as run:
        run.log("train", 1, {"loss": 1.0})
    code = "import sys; from pathlib import Path; from pipeline.tracking.delivery import Delivery; "
    code += "Delivery(Path(sys.argv[1]), print).deliver()"
    making = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")])
    while not any(path.stat().st_size for path in tmp_path.rglob("mlflow.db")):
        assert making.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)  # MLflow's migrations take seconds
    making.kill()
    making.wait()
    Delivery(tmp_path / "a", print).deliver()
    assert len(points(store_uri(tmp_path), only_run(store_uri(tmp_path)).info.run_id, "train/loss")) == 1
