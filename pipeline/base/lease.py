"""One writer per run folder, also after a network cut: the attempt that was given up may write no more.

A lock (flock) keeps a second job out. But a scheduler that loses sight of a node starts the job anew elsewhere while the
old attempt still lives and holds the lock: the new one, being a later attempt of the same job, takes the lease over, and
whatever the old one wants to publish is refused from then on.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import LEASE, LOCK
from pipeline.base.lock import is_locked, lock

# (identity of the job, number of its attempt) as schedulers name them in a task's environment; Ray names none, its door does:
# a launch, and when this group of workers began (ms).
RAY_VARIABLES = ("PIPELINE_RAY_LAUNCH", "PIPELINE_RAY_START")
ATTEMPT_VARIABLES = (
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    RAY_VARIABLES,
)

ASKING_SECONDS = 0.1  # far longer than `is_held` takes


class FencedError(UserError):
    """This attempt of the run was replaced by a later one and must not write."""


class Lease:
    """The right to write a run folder, held by one process."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Take the lease of `folder`. Raises UserError where another process holds it that this one may not replace."""
        self.folder, self.token = folder, uuid.uuid4().hex
        self._lock: IO[str] = open(folder / LOCK, "w")  # noqa: SIM115 - held as long as the run
        attempts = _attempts(environment)
        self._locked = self._try_lock()
        if not self._locked:  # `is_held` may have asked in this very moment
            time.sleep(ASKING_SECONDS)
            self._locked = self._try_lock()
        if not self._locked:
            holder = self._read()
            held = holder.get("attempts", {})
            if not any(job in held and attempt > held[job] for job, attempt in attempts.items()):
                self._lock.close()
                raise UserError(
                    f"another process is training in {folder} (on {holder.get('host', 'an unknown host')}): "
                    "wait for it, stop it, or choose another --name"
                )
        job, attempt = next(iter(attempts.items()), (None, 0))  # what a SLURM job's batch script looks for
        values = {
            "token": self.token,
            "job": job,
            "attempt": attempt,
            "host": socket.gethostname(),
            "attempts": attempts,
        }
        write_text(folder / LEASE, json.dumps(values) + "\n")

    def check(self) -> None:
        """Call before publishing anything. Raises FencedError where a later attempt took the run over."""
        holder = self._read()
        if holder.get("token") != self.token:
            raise FencedError(
                f"another attempt of this run (on {holder.get('host', 'an unknown host')}) has taken {self.folder} over: "
                "this one stops and writes nothing more"
            )
        if not self._locked:  # the attempt before may have gone meanwhile
            self._locked = self._try_lock()

    def release(self) -> None:
        self._lock.close()

    def _try_lock(self) -> bool:
        return lock(self._lock, elsewhere="put --runs elsewhere")

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / LEASE).read_text())
        except (FileNotFoundError, ValueError):
            return {}


def is_held(folder: Path) -> bool:
    """Whether a training holds a run folder: the run is being written."""
    return is_locked(folder / LOCK)


def _attempts(environment: Mapping[str, str]) -> dict[str, int]:
    """{job: attempt} for every scheduler that the environment names: Ray may itself run inside a SLURM job."""
    return {
        f"{job}={environment[job]}": int(environment.get(attempt, "0"))
        for job, attempt in ATTEMPT_VARIABLES
        if job in environment
    }
