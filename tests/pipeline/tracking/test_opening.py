"""The command `open`: it shows what stands in the run folders, wherever they are, and the errors first."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import TrackingConfig, log_evaluations, mlflow_run_id, open_tracker
from pipeline.tracking.browser import main as show_in_browser
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.opening import elsewhere, in_order
from tests.conftest import skip_without
from tests.listening import documented, family, places
from tests.patience import limit
from tests.pipeline.tracking.mlflow_server import server
from tests.pipeline.tracking.mlflow_store import runs_in, store_uri
from tests.pipeline.tracking.test_store import content

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = TrackingConfig(mlflow=False)


def train(folder: Path, config: TrackingConfig = OFFLINE, arch: str = "resnet8") -> Path:
    """A finished run that was trained without MLflow."""
    with open_tracker(folder, config, name=folder.name, params={"arch": arch}, tags={"arch": arch}) as run:
        for iteration in (10, 20):
            run.log("train", iteration, {"loss": 1 / iteration, "top1_error": 700 / iteration, "lr": 0.1})
            run.log("val", iteration, {"top1_error": 600 / iteration, "top5_error": 1.0})
        (folder / "config.yaml").write_text(f"arch: {arch}\n")
        run.artifact(folder / "config.yaml")
        run.finish("FINISHED")
    return folder


def get(port: int, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/2.0/mlflow/{path}", timeout=limit(60)) as answer:
        return json.loads(answer.read())


@pytest.mark.costly("a server is started, which imports MLflow twice")
def test_open_shows_a_copied_folder_and_leaves_the_old_one_alone(runs: Path, tmp_path: Path, port: int) -> None:
    Delivery(train(runs / "a"), print).deliver()
    train(runs / "b")  # which no MLflow has
    new = Path(shutil.copytree(runs, tmp_path / "r%20?x #1"))
    before = content(runs)
    with server(new, port) as started:
        for name in "ab":
            found = get(port, f"artifacts/list?run_id={mlflow_run_id(new / name)}")
            assert [file["path"] for file in found["files"]] == ["config.yaml"]
        assert places(family(started.pid)) == documented("python -m pipeline.tracking open")
    assert content(runs) == before
    said = (new / "server.log").read_text()
    assert f"These runs were copied or moved from {runs}: MLflow's store here now shows them here\n" in said
    assert "MLflow gets what it lacks of 2 of 2 runs ...\n" in said and "Updating database" not in said


def test_a_run_that_was_given_a_server_belongs_there(runs: Path) -> None:
    train(runs / "beside")
    train(runs / "server", TrackingConfig(mlflow=False, uri="https://mlflow.example.org"))
    tracking = runs / "server" / "tracking.json"  # earlier versions took a password from the config
    tracking.write_text(tracking.read_text().replace("https://", "https://me:secret@"))
    Delivery(runs / "beside", print).deliver()
    assert elsewhere(runs / "beside") is None
    assert elsewhere(runs / "server") == "https://mlflow.example.org"
    delivered = runs / "beside" / "mlflow.json"
    delivered.write_text(delivered.read_text().replace(store_uri(runs), "http://127.0.0.1:1"))
    assert elsewhere(runs / "beside") == "http://127.0.0.1:1"
    delivered.write_text(delivered.read_text().replace("http://127.0.0.1:1", "sqlite:////old/runs/mlflow.db"))
    assert elsewhere(runs / "beside") is None  # it was copied


def test_ensembles_come_after_their_members(runs: Path) -> None:
    for name, arch in (("a", "ensemble"), ("b", "resnet8"), ("c", "report"), ("d", "resnet8")):
        train(runs / name, arch=arch)
        tracking = runs / name / "tracking.json"
        tracking.write_text(tracking.read_text().replace('"kind": "training",', ""))  # as earlier versions wrote it
    assert [folder.name for folder in in_order(sorted(runs.glob("[a-d]")))] == ["b", "d", "a", "c"]


def test_the_browser_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        show_in_browser(port, "http://page", parent=0)  # the server has gone
        assert shown == []
        listening.listen()
        show_in_browser(port, "http://page", parent=os.getppid())
    assert shown == ["http://page"]


def page(link: str, width: int, profile: Path) -> str:
    """The page's content as Chromium shows it on a first visit. MLflow's table holds the columns that are in sight."""
    assert CHROMIUM is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        f"--user-data-dir={profile}",
    ]
    options += ["--virtual-time-budget=20000", "--timeout=90000", "--dump-dom", link]
    return subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=limit(180)).stdout


@pytest.mark.browser
def test_the_first_page_shows_errors_and_learning_curves(runs: Path, tmp_path: Path, port: int) -> None:
    if CHROMIUM is None:
        skip_without("needs Chromium (apt-get install chromium)")
    evaluations = {
        kind: {"top1_error": error, "top5_error": 0.5} for kind, error in (("center-val", 7.25), ("ten-crop-val", 6.5))
    }
    log_evaluations(train(runs / "a"), OFFLINE, 20, evaluations)
    train(runs / "report", arch="report")
    with server(runs, port):
        said = (runs / "server.log").read_text()
        (link,) = re.findall(rf"resnet: (http://127.0.0.1:{port}/\S+)", said)
        narrow, wide = (page(link, width, tmp_path / str(width)) for width in (1000, 1400))
        charts = page(f"{link}&compareRunsMode=CHART", 1400, tmp_path / "charts")
    assert {run.info.run_name for run in runs_in(store_uri(runs))} == {"a", "report"}
    for shown, columns in ((narrow, 2), (wide, 4)):
        assert "Model training" in shown and ">report<" not in shown
        names = ["ten-crop-val/top1_error", "center-val/top1_error", "val/top1_error", "train/top1_error"]
        values = ["6.5", "7.25", "30", "35"]
        headers = re.findall(r'<[^>]*role="columnheader"[^>]*>', shown)
        in_sight = [name for name in names if any(f"metrics.`{name}`" in header for header in headers)]
        assert in_sight[:columns] == names[:columns], headers
        assert all(f">{value}<" in shown for value in values[:columns])
    assert "arch" in wide and 'col-id="attributes.`Source`"' not in wide
    order = [
        charts.find(section) for section in ("1. Learning curves", "2. Evaluations", "3. Timing", "System metrics")
    ]
    assert -1 not in order and order == sorted(order)
