"""Ranks that are stopped, killed, or held up in Python or native code: the job ends in time and names them. Real ranks."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.base.exits import EXIT_HUNG
from pipeline.process.notes import Note
from pipeline.process.watchdog import Hang, name_the_hung, watching
from pipeline.run.config import Config
from tests.fleet import Fleet
from tests.helpers import ROOT, wait_for
from tests.patience import limit
from tests.pipeline.small_runs import config_of
from tests.ranks import CONTEXT, start_server

pytestmark = pytest.mark.waits

FOR_EVER = 1_000_000  # seconds: longer than any limit of a test


def timeout() -> float:
    """The run's time-out: even on a crowded machine longer than any part of a healthy rank's start, and than its delay
    against the rank that waits for it. Each test waits this long.
    """
    return limit(20)


def hold_up_the_loader(rank: int, culprit: int) -> None:
    """From the 200th image on, reading takes for ever."""
    from pipeline.data.dataset import Split

    read, seen = Split.read, []

    def sticky(split: Split, sample: int) -> bytes:
        seen.append(sample)
        if len(seen) > 200:
            time.sleep(FOR_EVER)
        return read(split, sample)

    if rank == culprit:
        Split.read = sticky


def hold_the_gil(rank: int, culprit: int) -> None:
    """The 8th update sleeps in machine code and never lets go of the interpreter."""
    from pipeline.loop.trainer import Trainer

    update = Trainer.update

    def deaf(trainer: Trainer, *batch: object) -> None:
        if trainer.progress.iteration == 8:
            ctypes.PyDLL(None).sleep(FOR_EVER)
        update(trainer, *batch)

    if rank == culprit:
        Trainer.update = deaf


def start(
    digits: Path, folder: Path, size: int, sabotage: Callable[[int], object] | None = None
) -> tuple[Config, Fleet]:
    config = replace(config_of(digits, folder, "hung"), iterations=100_000, timeout_seconds=timeout())
    return config, Fleet(config, size, folder / "logs", sabotage)


slow = pytest.mark.slow


@pytest.mark.parametrize("culprit", [0, pytest.param(1, marks=slow)])
def test_stopped_rank(digits: Path, tmp_path: Path, culprit: int) -> None:
    config, fleet = start(digits, tmp_path, 2)
    metrics = config.run_folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, "metrics")
    activity = config.run_folder / "activity" / f"rank-{culprit}.json"  # written every few seconds
    wait_for(lambda: (seen := Note.read(activity)) is not None and seen.iteration > 0, "a note")
    os.kill(fleet.ranks[culprit].pid or 0, signal.SIGSTOP)
    other = 1 - culprit
    fleet.ranks[other].join(limit(120))
    assert fleet.ranks[other].exitcode == EXIT_HUNG
    said = fleet.said(other)
    note = Note.read(activity)
    assert note is not None
    within = re.search(rf"rank {culprit} did not arrive within ([\d.]+) s", said)
    assert within is not None and float(within[1]) >= round(timeout(), 1), said
    assert "stopped responding" in said and str(note) in said
    # Long before that it said for whom it waits.
    assert re.search(
        rf"^waiting for rank {culprit} \(\S+\) for 1\d s: does not respond, its last note: ", said, re.M
    ), said
    fleet.kill()


@pytest.mark.parametrize("culprit", [pytest.param(0, marks=slow), 1])
def test_rank_stuck_in_the_loader(digits: Path, tmp_path: Path, culprit: int) -> None:
    _, fleet = start(digits, tmp_path, 2, partial(hold_up_the_loader, culprit=culprit))
    codes = fleet.wait(120)
    assert codes[culprit] == EXIT_HUNG and codes[1 - culprit] != 0
    said = fleet.said(culprit)
    assert f"rank {culprit} did not arrive" in said and "waiting for data" in said
    assert "producer.py" in said and "in sticky" in said  # the stacks of all its threads


@slow
def test_rank_that_holds_the_interpreter(digits: Path, tmp_path: Path) -> None:
    _, fleet = start(digits, tmp_path, 2, partial(hold_the_gil, culprit=1))
    codes = fleet.wait(120)
    assert codes[0] in (1, EXIT_HUNG) and codes[1] != 0
    assert "in deaf" in fleet.said(1)  # its stack, though Python could do nothing any more
    assert "rank 1 did not arrive" in fleet.said(0) and "iteration 8" in fleet.said(0)


def hold_the_gil_at_once(log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    with watching(2):
        ctypes.PyDLL(None).sleep(FOR_EVER)


def test_a_process_that_never_lets_its_watchdog_begin(tmp_path: Path) -> None:
    """The interpreter is held from the first instant: the threads of the watchdog never run."""
    start_server()
    process = CONTEXT.Process(target=hold_the_gil_at_once, args=(tmp_path / "log",), daemon=True)
    process.start()
    process.join(limit(60))
    process.kill()
    assert process.exitcode == 1
    assert "in hold_the_gil_at_once" in (tmp_path / "log").read_text()


@slow
def test_one_rank_alone(digits: Path, tmp_path: Path) -> None:
    _, fleet = start(digits, tmp_path, 1, partial(hold_up_the_loader, culprit=0))
    assert fleet.wait(120) == [EXIT_HUNG]
    assert "rank 0 did not arrive" in fleet.said(0) and "in sticky" in fleet.said(0)


def note_of(rank: int, position: int, beat: int = 1) -> Note:
    words = {"activity": "saving", "standing": 5.0, "time": 0.0, "host": "h", "process": 1}
    return Note(rank=rank, beat=beat, position=position, iteration=7, **words)


def test_who_is_named() -> None:
    """Silent ranks are named first; if all respond, the ranks that came least far; if all came equally far, all."""

    def ranks(own: Note, before: list[Note | None], after: list[Note | None]) -> Hang:
        return name_the_hung(own, 5.0, dict(enumerate(before, 1)), dict(enumerate(after, 1)))

    own = note_of(0, 9)
    assert ranks(own, [note_of(1, 8, 3), note_of(2, 9, 3)], [note_of(1, 8, 5), note_of(2, 9, 3)]).ranks == (2,)
    assert ranks(own, [note_of(1, 8, 3), note_of(2, 9, 3)], [note_of(1, 8, 5), note_of(2, 9, 5)]).ranks == (1,)
    assert ranks(own, [None, note_of(2, 9, 3)], [None, note_of(2, 9, 4)]).ranks == (1,)
    assert ranks(own, [note_of(1, 9, 3)], [note_of(1, 9, 4)]).ranks == (0, 1)


TELLS = """
import os, time
from pipeline.base.output import prepare
from pipeline.process import waiting, watchdog
from pipeline.process.notes import Note

prepare()
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 2)
watchdog.WAITED_SECONDS = waiting.WAITED_SECONDS = 0.1


class Board:
    size, read_so_far = 2, 0

    def write(self, note):
        pass

    def read(self, rank):
        self.read_so_far += 1
        values = dict(rank=1, beat=self.read_so_far, iteration=0, activity="x", standing=0.0, time=0.0, host="h", process=1)
        return Note(position=0 if self.read_so_far % 2 else None, **values)


board = Board()
with watchdog.watching(60.0) as watching:
    watching.share(board)
    for step in range(3):
        watching.note(f"step {step}")
        seen = board.read_so_far
        while board.read_so_far < seen + 2:
            time.sleep(0.01)
    assert all(thread.is_alive() for thread in watching.threads)
"""


def test_what_nobody_reads_or_understands_does_not_end_the_watching() -> None:
    """Standard error has no reader, and every second note is damaged. A clock that has ended would end the process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TELLS], env=environment, timeout=limit(60), capture_output=True)
    assert done.returncode == 0, done
