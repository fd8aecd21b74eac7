"""metrics.jsonl as CSV and as TensorBoard's event files, read back by readers that are not ours."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.command import UserError
from pipeline.tracking import __main__ as tracking

TIME = 1764000000123  # milliseconds since 1970
LINES: list[dict[str, Any]] = [
    {"kind": "train", "iteration": 20, "time": TIME, "loss": 2.302585092994046, "images_per_second": 400.5},
    {"kind": "val", "iteration": 20, "time": TIME + 1000, "top1_error": 90.1},
    {"kind": "train", "iteration": 40, "time": TIME + 2000, "loss": "NaN", "lr": 0.1},
    {"kind": "val", "iteration": 20, "time": TIME + 3000, "top1_error": 89.9},  # revised: the last counts
]
EXPECTED = {  # (kind, iteration, metric): (milliseconds, value)
    ("train", 20, "loss"): (TIME, 2.302585092994046),
    ("train", 20, "images_per_second"): (TIME, 400.5),
    ("train", 40, "loss"): (TIME + 2000, math.nan),
    ("train", 40, "lr"): (TIME + 2000, 0.1),
    ("val", 20, "top1_error"): (TIME + 3000, 89.9),
}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "runs" / name for name in ("resnet8-seed0", 'a, "quoted" name')]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return folders


def export(runs: list[Path], out: Path, format: str) -> None:
    assert tracking.main(["export", *map(str, runs), "--format", format, "--out", str(out)]) == 0


def test_csv_has_a_line_for_each_value(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a second export replaces the first
        export(runs, tmp_path / "out", "csv")
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["run", "kind", "iteration", "time", "metric", "value"]
    assert lines[0]["time"] == "2025-11-24T16:00:00.123+00:00"
    for folder in runs:
        found = {
            (line["kind"], int(line["iteration"]), line["metric"]): float(line["value"])
            for line in lines if line["run"] == folder.name
        }  # fmt: skip
        assert found.keys() == EXPECTED.keys()
        assert all(np.array_equal(found[key], value, equal_nan=True) for key, (_, value) in EXPECTED.items())
    assert len(lines) == 2 * len(EXPECTED)
    assert "resnet8-seed0" in capsys.readouterr().out


def test_pandas_reads_the_csv(runs: list[Path], tmp_path: Path) -> None:
    import pandas as pd

    export(runs, tmp_path, "csv")
    table = pd.read_csv(tmp_path / "metrics.csv", parse_dates=["time"])
    assert table["value"].dtype == np.float64 and str(table["time"].dtype).startswith("datetime64")
    loss = table[table.metric == "loss"].pivot(index="iteration", columns="run", values="value")
    assert loss.shape == (2, 2) and loss.iloc[0, 0] == 2.302585092994046


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file, with both of their checksums verified."""

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    content, at = path.read_bytes(), 0
    while at < len(content):
        head = content[at : at + 8]
        (length,) = struct.unpack("<Q", head)
        body = content[at + 12 : at + 12 + length]
        assert struct.unpack("<I", content[at + 8 : at + 12])[0] == masked(head)
        assert struct.unpack("<I", content[at + 12 + length : at + 16 + length])[0] == masked(body)
        yield body
        at += 16 + length


def test_tensorboard_reads_the_events(runs: list[Path], tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event  # the protocol buffers of TensorFlow

    for _ in range(2):  # a second export replaces the first
        export(runs, tmp_path, "tensorboard")
    for folder in runs:
        (file,) = (tmp_path / "tensorboard" / folder.name).iterdir()
        assert "tfevents" in file.name  # what TensorBoard looks for
        first, *events = [Event.FromString(record) for record in records(file)]
        assert first.file_version == "brain.Event:2"
        found = {
            (*value.tag.split("/"), event.step): (event.wall_time, value.simple_value)
            for event in events for value in event.summary.value
        }  # fmt: skip
        assert len(events) == len(EXPECTED)
        for (kind, iteration, metric), (time, value) in EXPECTED.items():
            wall, stored = found[kind, metric, iteration]
            assert wall == pytest.approx(time / 1000, abs=1e-6)
            assert np.array_equal(np.float32(stored), np.float32(value), equal_nan=True)


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl: give a run folder"):
        export([*runs, tmp_path], tmp_path / "out", "csv")
    with pytest.raises(UserError, match="two of the runs are named resnet8-seed0"):
        export([runs[0], runs[0]], tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()
