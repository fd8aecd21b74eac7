"""One writer per run folder, also after a network cut: an attempt that was replaced must not write.

A lock (flock) keeps a second job out. But a scheduler that loses contact with a node starts the job again elsewhere while
the old attempt still lives and holds the lock. The new attempt, a later one of the same job, then takes the lease over, and
the old attempt can publish nothing more.
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

from pipeline.base.attempt import (
    ATTEMPT_VARIABLE,
    JOB_VARIABLE,
    NOBODY,
    Attempts,
    Holder,
    attempts_of,
    is_later,
    read_holder,
)
from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import LEASE, LOCK
from pipeline.base.lock import is_locked, lock

ASKING_SECONDS = 0.1  # far longer than `is_held` takes


class FencedError(UserError):
    """A later attempt has replaced this attempt of the run, which must not write."""


class Lease:
    """The right to write a run folder, held by one process."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Take the lease of `folder`. Raises UserError where a process holds the lease that this attempt must not replace."""
        self.folder, self.token = folder, uuid.uuid4().hex
        attempts = _attempts(environment)
        self._lock: IO[str] = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - held as long as the run
        try:
            self._locked = self._try_lock()
            if not self._locked:  # `is_held`, in another process, takes the lock for a moment
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
        holder = Holder(self.token, socket.gethostname(), attempts)
        write_text(folder / LEASE, json.dumps(holder._asdict()) + "\n")

    def check(self) -> None:
        """Call this before anything is published. Raises FencedError where a later attempt has taken the run over.

        An attempt that took the run over also takes the lock here, once the earlier attempt has ended: the lock then keeps
        a third job out.
        """
        holder = read_holder(self.folder)
        if holder is NOBODY:
            raise FencedError(
                f"{self.folder / LEASE} is gone or damaged (was the run folder moved or removed?): "
                "this attempt stops and writes nothing more"
            )
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
    """Whether a training is writing the run folder."""
    return is_locked(folder / LOCK)


def _attempts(environment: Mapping[str, str]) -> Attempts:
    try:
        return attempts_of(environment)
    except ValueError:
        raise UserError(
            f"{ATTEMPT_VARIABLE} ({environment.get(ATTEMPT_VARIABLE, '')!r}) must hold a whole number for each word of "
            f"{JOB_VARIABLE} ({environment.get(JOB_VARIABLE, '')!r}): set both, or none"
        ) from None
