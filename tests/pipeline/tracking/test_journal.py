"""metrics.jsonl: nothing is written twice and nothing is lost, whatever interrupts the writing."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.base.command import UserError
from pipeline.tracking import read_metrics
from pipeline.tracking.journal import Journal, unsent_lines


def write(path: Path, iterations: range) -> None:
    journal = Journal(path)
    for iteration in iterations:
        journal.append("train", iteration, {"loss": iteration / 3, "lr": 0.1})
    journal.close()


def strict(line: str) -> dict[str, object]:
    """JSON as its standard has it, without Python's NaN."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_lines_are_strict_json_and_floats_survive(tmp_path: Path) -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1 + 0.2, "e": 5e-324, "f": -0.0}
    journal, before = Journal(tmp_path / "m"), time.time()
    journal.append("val", 7, values)
    journal.close()
    line = strict((tmp_path / "m").read_text())
    assert (line["kind"], line["iteration"]) == ("val", 7)
    assert before - 1 <= line["time"] / 1000 <= time.time() + 1  # type: ignore[operator]
    (record,) = read_metrics(tmp_path / "m")
    assert math.isnan(record.values.pop("a")) and math.isnan(values.pop("a"))
    assert {name: value.hex() for name, value in record.values.items()} == {n: v.hex() for n, v in values.items()}


def test_each_line_is_written_when_it_is_logged(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    journal.append("train", 1, {"loss": 1.0})
    assert len((tmp_path / "m").read_text().splitlines()) == 1
    journal.close()


def test_a_line_torn_at_any_byte_is_cut_off_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, range(3))
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        assert [record.iteration for record in read_metrics(path)] == [0, 1]  # a reader passes over it
        write(path, range(4))
        lines = [strict(line) for line in path.read_text().splitlines()]
        assert [(line["iteration"], line["loss"]) for line in lines] == [(i, i / 3) for i in range(4)], length


def test_bytes_that_a_power_cut_leaves_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, range(2))
    with open(path, "ab") as file:
        file.write(bytes(100))
    write(path, range(3))
    assert [strict(line)["iteration"] for line in path.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", ["nonsense", '{"kind": "train"}', "[1, 2]", '{"kind": "t", "iteration": 1, "time": []}']
)
def test_a_damaged_line_is_named_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m"
    write(path, range(3))
    lines = path.read_text().splitlines()
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"line 2 of .*/m is not a metrics record"):
        Journal(path)
    assert path.read_bytes() == before


def test_what_is_recorded_is_not_recorded_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, range(5))
    before = path.read_bytes()
    journal = Journal(path)
    assert not journal.append("train", 3, {"loss": 99.0, "lr": 0.1})
    assert path.read_bytes() == before
    assert journal.append("val", 3, {"loss": 99.0})
    assert journal.append("train", 5, {"loss": 5.0})
    assert not journal.append("train", 5, {"loss": 5.0})
    journal.close()
    assert [(r.kind, r.iteration) for r in read_metrics(path)[5:]] == [("val", 3), ("train", 5)]


def test_a_revised_evaluation_replaces_the_first_for_readers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    for error in (9.0, 9.0, 8.0, math.nan, math.nan):
        journal.append("val 10-crop", 100, {"top1_error": error}, revise=True)
    journal.close()
    assert len((tmp_path / "m").read_text().splitlines()) == 3
    (record,) = read_metrics(tmp_path / "m")
    assert math.isnan(record.values["top1_error"])


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from pipeline.tracking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))  # no file may grow beyond: writes stop mid-line
for iteration in range(20):
    journal.append("train", iteration, {"loss": iteration / 3})
try:
    journal.fsync()
    print("no error")
except OSError:
    print("refused", len(journal.pending))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append("train", 20, {"loss": 20 / 3})
journal.fsync()
journal.close()
"""


@pytest.mark.parametrize("limit", [1000, 1001, 1050])
def test_a_full_disk_loses_and_tears_nothing(tmp_path: Path, limit: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    path = tmp_path / "m"
    command = [sys.executable, "-c", FULL_DISK, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    assert done.stderr.count("\n") == 1 and "metrics wait in memory" in done.stderr
    lines = [strict(line) for line in path.read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(i, i / 3) for i in range(21)]


def test_two_threads_write_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training logs while a checkpoint's thread syncs; a slow disk lets one in while the other writes."""
    write_now = os.write

    def slowly(descriptor: int, content: bytes) -> int:
        time.sleep(0.001)
        return write_now(descriptor, content)

    monkeypatch.setattr(os, "write", slowly)
    journal, over = Journal(tmp_path / "m"), threading.Event()

    def sync() -> None:
        while not over.is_set():
            journal.fsync()

    syncing = threading.Thread(target=sync)
    syncing.start()
    for iteration in range(300):
        journal.append("train", iteration, {"loss": 1.0})
    over.set()
    syncing.join()
    journal.close()
    lines = [strict(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(300))


def test_a_line_that_was_torn_comes_whole_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"one\ntw")
    with open(path, "rb") as file, open(path, "ab", buffering=0) as writer:
        batches = unsent_lines(file, 0)
        assert next(batches) == ([b"one\n"], 4)
        writer.write(b"o\nthree\n")
        assert list(batches) == [([b"two\n", b"three\n"], 14)]
    with open(path, "rb") as file:
        assert [lines for lines, _ in unsent_lines(file, 8)] == [[b"three\n"]]
        file.seek(4)
        assert [position for _, position in unsent_lines(file, 99)] == [14]  # replaced by a shorter file


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"kind": "train", "iteration": Infinity, "time": 1}',
        b'{"kind": "train", "iteration": 1, "time": 1, "loss": ' + b"9" * 5000 + b"}",
        b"\0\0\0\0",
        b"\xff\xfe",
        b"3",
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"kind": "train", "iteration": 1, "time": 1}\n')
    with pytest.raises(UserError, match=r"line 1 of .* is not a metrics record"):
        read_metrics(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for name, make in (("folder", Path.mkdir), ("loop", lambda path: path.symlink_to(path)), ("pipe", os.mkfifo)):
        path = tmp_path / name
        make(path)
        for reads in (read_metrics, Journal):
            with pytest.raises(UserError, match="is not a file: move it away"):
                reads(path)


def test_a_position_within_a_line_is_none(tmp_path: Path) -> None:
    """As a damaged mlflow.json may have it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"one\ntwo\nthree\n")
    for sent, lines in ((0, 3), (4, 2), (8, 1), (14, 0), (5, 3), (99, 3), (-3, 3)):
        with open(path, "rb") as file:
            assert sum(len(found) for found, _ in unsent_lines(file, sent)) == lines, sent
