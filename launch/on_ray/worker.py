"""What Ray Train runs on every worker: the same work as every other launcher, in the process group that Ray has opened."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from launch.on_slurm.attempt import slurm_variables
from launch.ranks.failure import attempt, failure_of_hang, note, read_notes
from launch.ranks.follow import point_output_at, send_output_to
from launch.ranks.work import Work
from pipeline.base.attempt import LAUNCHER_VARIABLE, attempt_variables
from pipeline.base.exits import EXIT_FENCED, EXIT_USER_ERROR
from pipeline.base.files import write_text
from pipeline.base.layout import CHECKPOINTS, LOGS, RAY, RAY_OUTCOME, RAY_STOP, newest_checkpoint, rank_log
from pipeline.base.output import prepare
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.process.watchdog import Hang

POINTER = "checkpoint.json"
SAME_MISTAKE_SECONDS = 5.0
PROBE, PROBE_BYTES = ".room", 1 << 18  # Ray writes a folder, the pointer, and its own state


class Arguments(TypedDict):
    work: Work  # with absolute paths
    attempt: str  # name of this launch's notes
    command: str  # as its user typed it


def train(arguments: Arguments) -> None:
    """Work as one worker.

    Raises RuntimeError where another start may help, so that Ray's FailureConfig decides. A mistake of the user is noted,
    and no worker starts again: all end at once where all of them found it; else this worker's error makes Ray restart them,
    and they end at once then.
    """
    prepare()
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it announces every report
    work, launch = arguments["work"], arguments["attempt"]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ[LAUNCHER_VARIABLE] = "ray"
    os.environ |= slurm_variables()  # Ray may itself run inside a SLURM job
    # Where a node is cut off and not dead, its rank 0 still holds the run: the group of workers after it takes the run over.
    os.environ |= attempt_variables(launch, time.time_ns() // 1_000_000, os.environ)
    # Ray gives each worker process one OpenMP thread; the trainer divides the host's cores itself.
    os.environ.pop("OMP_NUM_THREADS", None)
    logs = work.folder / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    if _mistakes(logs, launch):
        return

    def on_hang(hang: Hang) -> None:
        note(failure_of_hang(hang), logs, launch, str(log))

    def asked() -> int | None:
        path = logs / f"{launch}{RAY_STOP}"
        with suppress(OSError, ValueError):
            return int(path.read_text(encoding="utf-8"))
        return None

    def on_save() -> None:
        report_newest(work.folder / CHECKPOINTS, rank)

    os.environ[COMMAND_VARIABLE] = arguments["command"]
    with output_to(log := rank_log(work.folder, rank)):
        code, failure = attempt(rank, lambda: work(on_hang, on_save, asked))
        if failure and code != EXIT_FENCED:
            note(failure, logs, launch, str(log))
    if failure and code == EXIT_FENCED:  # the notes and the outcome of this launch are now those of other workers
        raise RuntimeError(failure.sentence)
    if rank == 0:
        (logs / f"{launch}{RAY_OUTCOME}").write_text(str(code), encoding="utf-8")
    if failure and not (code == EXIT_USER_ERROR and _found_by_all(logs, launch, size)):
        raise RuntimeError(f"rank {rank} failed: {failure.sentence}")


def report_newest(checkpoints: Path, rank: int) -> None:
    """Tell Ray of the newest checkpoint in the run folder, by a pointer: Ray copies what it is given. A barrier.

    A restart reads the run folder itself, whose newest sound checkpoint is at least as new as what Ray was told of.
    """
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        pointer, iteration = None, 0
        storage = checkpoints.parent / RAY
        if rank == 0 and (newest := newest_checkpoint(checkpoints)) and _takes_a_pointer(storage):
            iteration, path = newest
            Path(folder, POINTER).write_text(
                json.dumps({"checkpoint": str(path), "iteration": iteration}) + "\n", encoding="utf-8"
            )
            pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"iteration": iteration}, checkpoint=pointer)


def _takes_a_pointer(storage: Path) -> bool:
    """Whether there is room for a pointer: a report that fails would end the training, which can wait for room itself."""
    try:
        write_text(storage / PROBE, "x" * PROBE_BYTES)
        (storage / PROBE).unlink()
    except OSError:
        return False
    return True


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
    send_output_to(log)
    try:
        yield
    finally:
        point_output_at(*kept)
        for descriptor in kept:
            os.close(descriptor)
