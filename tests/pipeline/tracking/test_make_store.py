"""MLflow's store is made by the first run, by several runs at once, or by a run that is killed while making it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.tracker import Tracker
from tests.helpers import wait_for
from tests.patience import limit
from tests.pipeline.tracking.mlflow_store import only_run, points, runs_in, store_uri


def trained(folder: Path) -> Tracker:
    return open_tracker(folder, TrackingConfig(mlflow=False), name=folder.name, params={}, tags={})


FIRST_DELIVERIES = """
import os, sys, time
from pathlib import Path
import mlflow.tracking.client
from pipeline.tracking.delivery import Delivery
children = []
for name in ("a", "b"):
    children.append(os.fork())
    while not children[-1]:  # again and again, as the process beside a run does
        try:
            Delivery(Path(sys.argv[1]) / name, print).deliver()
            os._exit(0)
        except Exception as error:
            print(error)
        time.sleep(0.5)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
"""


@pytest.mark.costly("MLflow takes CPU seconds to make a store, and two make this one")
def test_runs_that_make_the_store_at_the_same_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with trained(tmp_path / name) as run:
            for iteration in range(300):
                run.log("train", iteration, {"loss": 1.0})
    subprocess.run([sys.executable, "-c", FIRST_DELIVERIES, str(tmp_path)], check=True, timeout=limit(250))
    uri = store_uri(tmp_path)
    assert sorted(run.info.run_name for run in runs_in(uri)) == ["a", "b"]
    for run in runs_in(uri):
        assert len(points(uri, run.info.run_id, "train/loss")) == 300


@pytest.mark.costly("MLflow takes CPU seconds to make a store, and this one is made twice")
@pytest.mark.parametrize(
    "seconds", [0.3, pytest.param(0.6, marks=pytest.mark.slow), pytest.param(1.2, marks=pytest.mark.slow)]
)
def test_a_run_killed_while_it_made_the_store(tmp_path: Path, seconds: float) -> None:
    with trained(tmp_path / "a") as run:
        run.log("train", 1, {"loss": 1.0})
    code = "import sys; from pathlib import Path; from pipeline.tracking.delivery import Delivery; "
    code += "Delivery(Path(sys.argv[1]), print).deliver()"
    making = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")])

    def begun() -> bool:
        return any(path.stat().st_size for path in tmp_path.rglob("mlflow.db"))

    wait_for(lambda: making.poll() is not None or begun(), "the beginning of the store", 250)
    time.sleep(seconds)  # MLflow's migrations take seconds
    making.kill()
    making.wait()
    Delivery(tmp_path / "a", print).deliver()
    assert len(points(store_uri(tmp_path), only_run(store_uri(tmp_path)).info.run_id, "train/loss")) == 1
