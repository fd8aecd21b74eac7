"""One writer per run folder, also after a network cut: the attempt that was given up may write no more.

A lock (flock) keeps a second job out. But a scheduler that loses sight of a node starts the job anew elsewhere while the
old attempt still lives and holds the lock: the new attempt, a later one of the same job, takes the lease over, and
whatever the old attempt wants to publish is refused from then on.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pipeline.base.attempt import ATTEMPT_VARIABLE, JOB_VARIABLE, Attempts, Holder, attempts_of, is_later, read_holder
from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import LEASE, LOCK
from pipeline.base.lock import is_locked, lock

ASKING_SECONDS = 0.1  # far longer than `is_held` takes


class FencedError(UserError):
    """This attempt of the run was replaced by a later one and must not write."""


class Lease:
    """The right to write a run folder, held by one process."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Take the lease of `folder`. Raises UserError where another process holds it that this one may not replace."""
        self.folder, self.token = folder, uuid.uuid4().hex
        attempts = _attempts(environment)
        self._lock: IO[str] = open(folder / LOCK, "w")  # noqa: SIM115 - held as long as the run
        try:
            self._locked = self._try_lock()
            if not self._locked:  # `is_held` may have asked in this very moment
                time.sleep(ASKING_SECONDS)
                self._locked = self._try_lock()
            if not self._locked:
                holder = read_holder(folder)
                if not is_later(attempts, than=holder.attempts):
                    raise UserError(
                        f"another process is training in {folder} (on {holder.host}): "
                        "wait for it, stop it, or choose another --name"
                    )
        except BaseException:
            self._lock.close()
            raise
        mine = Holder(self.token, socket.gethostname(), attempts)
        write_text(folder / LEASE, json.dumps(mine._asdict()) + "\n")

    def check(self) -> None:
        """Call before anything is published. Raises FencedError where a later attempt took the run over.

        Also takes the lock, where this attempt took the run over and the attempt before has gone since: the lock then
        keeps a third job out.
        """
        holder = read_holder(self.folder)
        if holder.token != self.token:
            raise FencedError(
                f"another attempt of this run (on {holder.host}) has taken {self.folder} over: "
                "this attempt stops and writes nothing more"
            )
        self._locked = self._locked or self._try_lock()

    def release(self) -> None:
        self._lock.close()

    def _try_lock(self) -> bool:
        return lock(self._lock, elsewhere="put --runs elsewhere")


def is_held(folder: Path) -> bool:
    """Whether a training holds a run folder: the run is being written."""
    return is_locked(folder / LOCK)


def _attempts(environment: Mapping[str, str]) -> Attempts:
    try:
        return attempts_of(environment)
    except ValueError:
        raise UserError(
            f"{ATTEMPT_VARIABLE} ({environment.get(ATTEMPT_VARIABLE, '')!r}) must hold a whole number for each word of "
            f"{JOB_VARIABLE} ({environment.get(JOB_VARIABLE, '')!r}): set both, or none"
        ) from None
