"""One attempt of a job at a time: after a network cut the attempt that was cut off may live on while SLURM starts the next.

Rank 0 of each attempt takes the lease, a file in the run folder. Every rank looks at it once a second and ends itself, at
once and without a last word, when a later attempt of its job holds it. The later attempt waits long enough for that.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

LEASE = "lease.json"
LOOK_SECONDS = 1.0
# The batch script looks as often and comes first: its srun must not notice how the ranks end.
LOOKS_BEFORE_THE_END = 2
# The ranks' looks, one that was just missed, and one for slow storage and the end of the process.
HANDOVER_SECONDS = (LOOKS_BEFORE_THE_END + 2) * LOOK_SECONDS
EXIT_FENCED = 76


@dataclass(frozen=True)
class Attempt:
    """Attempt number `restarts` of the scheduler's job `job`."""

    job: str
    restarts: int

    def superseded_by(self, other: Attempt) -> bool:
        return self.job == other.job and self.restarts < other.restarts


class Fence:
    """The lease of one attempt on the run folder `folder`."""

    def __init__(self, folder: Path, attempt: Attempt) -> None:
        self.path, self.attempt = folder / LEASE, attempt
        self._over = threading.Event()

    def take(self) -> None:
        """Called by rank 0 before it touches the run: take the lease, and wait where the holder before may still live."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        held = self._read()
        self._end_if_superseded(held)
        self._write(released=False)
        if held is not None and not held[1] and held[0].job == self.attempt.job:
            time.sleep(HANDOVER_SECONDS)

    def release(self) -> None:
        """Called by rank 0 when nothing will be written any more."""
        self._over.set()
        held = self._read()
        if held is not None and held[0] == self.attempt:
            self._write(released=True)

    def watch(self, end: Callable[[int], object] = os._exit) -> None:
        """Look at the lease in the background from now on; `end` is called where it is another's."""

        def look() -> None:
            seen = 0
            while not self._over.wait(LOOK_SECONDS):
                held = self._read()
                seen += held is not None and self.attempt.superseded_by(held[0])
                if seen >= LOOKS_BEFORE_THE_END:
                    self._end_if_superseded(held, end)

        threading.Thread(target=look, name="fence", daemon=True).start()

    def _end_if_superseded(self, held: tuple[Attempt, bool] | None, end: Callable[[int], object] = os._exit) -> None:
        if held is not None and self.attempt.superseded_by(held[0]):
            print(
                f"attempt {self.attempt.restarts} of job {self.attempt.job} ends: attempt {held[0].restarts} has taken over",
                file=sys.stderr,
                flush=True,
            )
            end(EXIT_FENCED)

    def _read(self) -> tuple[Attempt, bool] | None:
        """The holder, and whether it has released; None where there is none or the storage does not answer."""
        # Opened anew each time: that is what makes a network file system ask its server.
        with suppress(OSError, ValueError, KeyError):
            lease = json.loads(self.path.read_text())
            return Attempt(lease["job"], lease["restarts"]), bool(lease["released"])
        return None

    def _write(self, *, released: bool) -> None:
        temporary = self.path.with_name(f".{LEASE}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**asdict(self.attempt), "released": released}) + "\n")
        os.replace(temporary, self.path)
