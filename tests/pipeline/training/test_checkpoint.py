"""Checkpoints: every way to damage one is recognised, a kill at any moment leaves a sound one, the rule keeps what it says."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints, UnsoundError, publish, read_verified
from tests.disks import small_disk
from tests.fleet import Fleet
from tests.helpers import ROOT
from tests.patience import limit
from tests.pipeline.small_runs import config_of
from tests.pipeline.training.states import numbers, state
from tests.ranks import CONTEXT, start_server


def test_round_trip(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    saved = state(7)
    checkpoints.save(7, saved)
    saved["model"]["w"].zero_()  # what comes after does not reach the snapshot
    assert checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None and found.iteration == 7 and found.state["training"] == saved["training"]
    assert torch.equal(found.state["model"]["w"], state(7)["model"]["w"])


def test_every_truncation_and_flip_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = publish(tmp_path, 1, {"iteration": 1, "model": {"w": torch.arange(8.0)}})
    newer = publish(tmp_path, 2, {"iteration": 2, "model": {"w": torch.arange(9.0)}})
    data = newer.read_bytes()
    generator = random.Random(0)
    for length in [0, 1, *generator.sample(range(len(data)), 100), len(data) - 1]:
        newer.write_bytes(data[:length])
        with pytest.raises(UnsoundError):
            read_verified(newer)
    for place in generator.sample(range(len(data)), 300):
        newer.write_bytes(data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :])
        with pytest.raises(UnsoundError):
            read_verified(newer)
    found = Checkpoints(tmp_path, CheckpointConfig()).newest()
    assert found is not None and found.path == good
    assert newer.name in capsys.readouterr().err


def test_retention(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2, keep_every=40, keep_best=True))
    (tmp_path / "00000005-1.tmp").write_bytes(b"left by a kill")
    for number in range(10, 110, 10):
        checkpoints.save(number, {"iteration": number}, best_iteration=30)
    checkpoints.wait()
    assert sorted(int(path.name[:8]) for path in tmp_path.iterdir()) == [30, 40, 80, 90, 100]


WARNS = """
import errno, os
from pathlib import Path
from pipeline.base.output import prepare
from pipeline.training import checkpoint
prepare()
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 2)
publish = checkpoint.publish
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
checkpoint.publish = full
checkpoints = checkpoint.Checkpoints(Path(), checkpoint.CheckpointConfig())
checkpoints.save(1, {"iteration": 1})
assert not checkpoints.wait()
checkpoint.publish = publish
checkpoints.save(2, {"iteration": 2})
assert checkpoints.wait()
"""


def test_warnings_that_nobody_takes_end_no_save(tmp_path: Path) -> None:
    """Standard error is a pipe without a reader, and the disk has no room."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", WARNS], cwd=tmp_path, env=environment).returncode == 0
    assert numbers(tmp_path) == [2]


def test_full_disk_leaves_the_last_one_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path, 1):
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        checkpoints.save(1, {"iteration": 1})
        assert checkpoints.wait()
        checkpoints.save(2, {"iteration": 2, "w": torch.zeros(1_000_000)})
        assert not checkpoints.wait()
        assert "the disk is full" in capsys.readouterr().err
        assert not list(tmp_path.glob("*.tmp"))
        found = checkpoints.newest()
        assert found is not None and found.iteration == 1
        checkpoints.save(3, {"iteration": 3})
        assert checkpoints.wait()
        filler = tmp_path / "filler"
        filler.write_bytes(bytes(900_000))
        checkpoints.save(4, {"iteration": 4, "w": torch.zeros(100_000)})
        assert not checkpoints.settle((0.0,))
        filler.unlink()
        assert checkpoints.settle((0.0,)), "the last one is tried again"
        found = checkpoints.newest()
        assert found is not None and found.iteration == 4


def fail_while_saving(rank: int) -> None:
    """The update after the first checkpoint fails while the file is being written, which takes a second more."""
    from pipeline.loop.trainer import Trainer

    update, write, failed = Trainer.update, checkpoint.publish, threading.Event()

    def failing(trainer: Trainer, *batch: Any) -> None:
        if trainer.progress.iteration == trainer.config.checkpoint.every:
            failed.set()
            raise MemoryError
        update(trainer, *batch)

    def slowly(*what: Any) -> Path:
        failed.wait()
        time.sleep(1)
        return write(*what)

    Trainer.update, checkpoint.publish = failing, slowly


def test_a_run_that_fails_ends_the_write_in_flight(digits: Path, tmp_path: Path) -> None:
    """The process ends at once then: nothing waits for threads any more."""
    config = config_of(digits, tmp_path, "failed")
    assert Fleet(config, 1, tmp_path / "logs", fail_while_saving).wait(60) == [1]
    found = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert found is not None and found.iteration == config.checkpoint.every


def test_a_storage_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(checkpoint, "publish", lambda *_: over.wait())
    monkeypatch.setattr(checkpoint, "CLOSE_SECONDS", 0.1)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"iteration": 1})
    checkpoints.close()
    assert not over.is_set()
    over.set()


class WorstDisk:
    """The folders that a power cut could leave of `folder`: what was not synced is lost where that is worse, else kept.

    Stands before every fsync, rename and removal; `check` is called with each of those folders, made below `scratch`.
    """

    def __init__(
        self, folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], None]
    ) -> None:
        self.folder, self.scratch, self.check = folder, scratch, check
        self.synced: dict[int, bytes] = {}  # contents by inode
        self.names: dict[str, int] = {}  # the folder's entries on the disk
        self.cuts = 0
        scratch.mkdir()
        self.calls = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
        for name in self.calls:
            monkeypatch.setattr(os, name, partial(self.call, name))

    def call(self, name: str, what: int | str | Path, *others: object, **options: object) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
        if not place.is_relative_to(self.folder):
            return self.calls[name](what, *others, **options)
        self.cut()
        if name == "unlink" and place.exists():
            os.link(place, self.scratch / f"removed-{self.cuts}")  # keeps the inode's number from being given again
        self.calls[name](what, *others, **options)
        if name == "fsync" and place == self.folder:
            self.names = self.entries()
        elif name == "fsync":
            self.synced[place.stat().st_ino] = place.read_bytes()

    def entries(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def cut(self) -> None:
        now = self.entries()
        both = {name: inode for name, inode in self.names.items() if now.get(name) == inode}
        for left in (self.names, now, both):  # no change reached the disk, all did, only the removals
            self.cuts += 1
            place = self.scratch / f"cut-{self.cuts}"
            place.mkdir()
            for name, inode in left.items():
                content = self.synced.get(inode)
                if content is None:  # not synced: half of it is there
                    whole = (self.folder / name).read_bytes() if name in now else b""
                    content = whole[: len(whole) // 2]
                (place / name).write_bytes(content)
            self.check(place)


def test_a_power_cut_between_any_two_calls_loses_no_published_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = 0

    def check(left: Path) -> None:
        found = Checkpoints(left, CheckpointConfig()).newest()
        assert (found.iteration if found else 0) >= published

    disk = WorstDisk(tmp_path / "checkpoints", tmp_path / "scratch", monkeypatch, check)
    checkpoints = Checkpoints(disk.folder, CheckpointConfig(keep_last=1))
    for number in range(1, 5):
        checkpoints.save(number, {"iteration": number, "w": torch.full((50,), number)})
        assert checkpoints.wait()
        published = number
        disk.cut()
    assert disk.cuts >= 4 * 3 * 4 and [path.name[:8] for path in disk.folder.iterdir()] == ["00000004"]


def _save_for_ever(folder: Path, started: multiprocessing.Event) -> None:
    checkpoints = Checkpoints(folder, CheckpointConfig())
    newest = checkpoints.newest()
    first = number = newest.iteration if newest else 0
    while True:
        number += 1
        checkpoints.save(number, state(number))
        if number == first + 3:  # one save at a time: the one before it is published
            started.set()


def test_kills_while_saving_never_leave_nothing(tmp_path: Path) -> None:
    start_server()
    generator = random.Random(1)
    last = 0
    for _ in range(6):
        started = CONTEXT.Event()
        process = CONTEXT.Process(target=_save_for_ever, args=(tmp_path, started))
        process.start()
        assert started.wait(limit(60))
        time.sleep(generator.uniform(0.02, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        newest = Checkpoints(tmp_path, CheckpointConfig()).newest()
        number = newest.iteration if newest else 0
        assert number >= last, "a kill lost a published checkpoint"
        if newest:
            assert torch.equal(newest.state["model"]["w"], state(number)["model"]["w"])
        last = number
    assert last > 6
