"""What Ray Train runs on every worker: the same work as every other launcher, in the process group that Ray has opened."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from launch.ranks.failure import attempt, failure_of_hang, note, read_notes
from launch.ranks.work import Work
from pipeline.base.exits import EXIT_FENCED, EXIT_USER_ERROR
from pipeline.base.lease import RAY_VARIABLES
from pipeline.process.watchdog import Hang

OUTCOME = "outcome"  # file in the attempt's folder: the exit code of rank 0
POINTER = "checkpoint.json"
SAME_MISTAKE_SECONDS = 5.0


class Arguments(TypedDict):
    work: Work  # with absolute paths
    attempt: str  # name of this launch's notes


def train(arguments: Arguments) -> None:
    """Work as one worker.

    Raises RuntimeError where another start may help, so that Ray's FailureConfig decides. A mistake of the user is noted,
    and no worker starts again: all end at once where all of them found it; else this worker's error makes Ray restart them,
    and they end at once then.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it announces every report
    work, launch = arguments["work"], arguments["attempt"]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["PIPELINE_LAUNCHER"] = "ray"
    # A node that is cut off but not dead has a rank 0 that still holds the run: the next group of workers takes the run over.
    os.environ |= dict(zip(RAY_VARIABLES, (launch, str(time.time_ns() // 1_000_000)), strict=True))
    # Ray gives each worker process one OpenMP thread; the trainer divides the host's cores itself.
    os.environ.pop("OMP_NUM_THREADS", None)
    logs = work.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if _mistakes(logs, launch):
        return

    def on_hang(hang: Hang) -> None:
        note(failure_of_hang(hang), logs, launch, str(log))

    with output_to(log := logs / f"rank-{rank}.log"):
        code, failure = attempt(rank, lambda: work(on_hang, lambda: report_newest(work.folder / "checkpoints", rank)))
        if failure and code != EXIT_FENCED:
            note(failure, logs, launch, str(log))
    if failure and code == EXIT_FENCED:  # the notes and the outcome of this launch are now those of other workers
        raise RuntimeError(failure.sentence)
    if rank == 0:
        (logs / f"{launch}-{OUTCOME}").write_text(str(code))
    if failure and not (code == EXIT_USER_ERROR and _found_by_all(logs, launch, size)):
        raise RuntimeError(f"rank {rank} failed: {failure.sentence}")


def report_newest(checkpoints: Path, rank: int) -> None:
    """Tell Ray of the newest checkpoint in the run folder, by a pointer: Ray copies what it is given. A barrier.

    A restart reads the run folder itself, whose newest sound checkpoint is at least as new as what Ray was told of.
    """
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        pointer, iteration = None, 0
        newest = max(checkpoints.glob("*.pt"), default=None) if rank == 0 else None
        if newest is not None:
            iteration = int(newest.name.partition("-")[0])
            Path(folder, POINTER).write_text(json.dumps({"checkpoint": str(newest), "iteration": iteration}) + "\n")
            pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"iteration": iteration}, checkpoint=pointer)


def _mistakes(logs: Path, launch: str) -> int:
    """How many ranks of this launch have noted a mistake of the user."""
    return sum(failure.code == EXIT_USER_ERROR for failure in read_notes(logs, launch))


def _found_by_all(logs: Path, launch: str, size: int) -> bool:
    """Whether every rank notes a mistake of the user, as they do where all of them were given it. Waits for their notes."""
    end = time.monotonic() + SAME_MISTAKE_SECONDS
    while (found := _mistakes(logs, launch)) < size and time.monotonic() < end:
        time.sleep(0.1)
    return found >= size


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what this process writes, in Python or machine code, to `log` while the block runs."""
    kept = [os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _point_output_at(descriptor, descriptor)
    os.close(descriptor)
    try:
        yield
    finally:
        _point_output_at(*kept)
        for descriptor in kept:
            os.close(descriptor)


def _point_output_at(out: int, err: int) -> None:
    for stream, descriptor in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
