"""tracking.json and mlflow.json: what is damaged counts as missing, with one warning, and ends nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.layout import DELIVERED, TRACKING
from pipeline.tracking import TrackingConfig, open_tracker, read_metrics
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.state import Delivered, Wanted
from tests.pipeline.tracking.mlflow_store import only_run, points, store_uri

OFFLINE = TrackingConfig(mlflow=False)


def other(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def made(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


DAMAGE = {
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "half": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "no keys": lambda path: path.write_text('{"artifacts": 3}'),
    "another type": other("artifacts", 3),
    "a folder": made(Path.mkdir),
    "a pipe": made(os.mkfifo),
}


def logged(folder: Path, iteration: int) -> None:
    with open_tracker(folder, OFFLINE, name="a", params={"lr": 0.1}, tags={}) as run:
        run.log("train", iteration, {"loss": 1.0})
        run.finish("FINISHED")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [TRACKING, DELIVERED])
def test_a_damaged_file_ends_no_run(tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a"
    logged(folder, 1)
    Delivered(uri="sqlite:///x", run_id="ab").write(folder)
    DAMAGE[damage](folder / name)
    Wanted.read(folder), Delivered.read(folder), Delivered.read(folder)
    logged(folder, 2)
    assert [record.iteration for record in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    said = capsys.readouterr().err
    assert said.count(f"warning: {folder / name} is damaged (it is not what a run wrote) and counts as missing\n") == 1


@pytest.mark.parametrize(
    ("key", "value"), [("key", "' or '1"), ("artifacts", [["a"]]), ("dataset", {"a": 1}), ("status", "x")]
)
def test_values_that_no_run_wrote_are_damage(tmp_path: Path, key: str, value: object) -> None:
    logged(tmp_path, 1)
    assert Wanted.read(tmp_path)
    other(key, value)(tmp_path / TRACKING)
    assert Wanted.read(tmp_path) is None


def test_a_key_of_a_later_version_is_no_damage(tmp_path: Path) -> None:
    logged(tmp_path, 1)
    other("later", [1])(tmp_path / TRACKING)
    assert Wanted.read(tmp_path)


@pytest.mark.parametrize("name", [TRACKING, DELIVERED])
def test_after_the_damage_mlflow_has_each_point_once(runs: Path, name: str) -> None:
    folder, uri = runs / "a", store_uri(runs)
    logged(folder, 1)
    Delivery(folder, print).deliver()
    (folder / name).write_text("[")
    logged(folder, 2)
    Delivery(folder, print).deliver()
    assert [step for step, _, _ in points(uri, only_run(uri).info.run_id, "train/loss")] == [1, 2]
