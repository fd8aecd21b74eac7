"""What Ray Train runs on every worker: the same pipeline.train.main, in the process group that Ray has opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.failure import attempt, failure_of_hang, note
from pipeline.command import EXIT_USER_ERROR
from pipeline.config import Config

OUTCOME = "outcome"  # file in the attempt's folder: the exit code of rank 0


def train(arguments: dict[str, object]) -> None:
    """Train as one worker. `arguments`: config (Config with absolute paths), attempt (name of this launch's notes).

    Raises RuntimeError where another start may help, so that Ray's FailureConfig decides; a mistake of the user is noted
    and not raised, since no restart mends it.
    """
    config, launch = arguments["config"], str(arguments["attempt"])
    assert isinstance(config, Config)
    rank = int(os.environ["RANK"])
    os.environ["PIPELINE_LAUNCHER"] = "ray"
    # Ray gives each worker process one OpenMP thread; the trainer divides the host's cores itself.
    os.environ.pop("OMP_NUM_THREADS", None)
    logs = config.run_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def main() -> int:
        from pipeline.train import main

        return main(config, lambda hang: note(failure_of_hang(hang), logs, launch, str(log)))

    with output_to(log := logs / f"rank-{rank}.log"):
        code, failure = attempt(rank, main)
        if failure:
            note(failure, logs, launch, str(log))
    if rank == 0:
        (logs / f"{launch}-{OUTCOME}").write_text(str(code))
    if failure and code != EXIT_USER_ERROR:
        raise RuntimeError(f"rank {rank} failed: {failure.sentence}")


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """What this process writes, in Python or machine code, goes to `log` while the block runs."""
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
