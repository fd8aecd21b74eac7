"""Nobody waits for ever: where a rank stops, dies or hangs, the job ends within the time-out, and says which rank it was.

Every rank notes what it begins (`note`, below a microsecond). A thread writes the latest note to activity/rank-K.json of
the run folder, once a second: there the others read what a rank did last that can no longer say so itself. A rank whose
own notes have stood still for the time-out looks at those files, names the ranks that did not arrive, writes the Python
stacks of all its threads to its log, and ends its process; its launcher then ends the others.

    held up                                   who sees it
    in Python (the loader, a lock, storage)   the rank itself, and the others, who wait for it
    stopped, dead, or its host gone           the others
    in machine code that holds the GIL        the others, and in the rank itself a thread of faulthandler's that needs no GIL
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

from pipeline.base.exits import EXIT_HUNG
from pipeline.base.layout import activity_of

# Collectives give up this long after the watchdog would have: it can say more than they.
COLLECTIVE_GRACE_SECONDS = 30.0

_BEAT_SECONDS = 1.0
_BEATS_PER_TIMEOUT = 20  # at least, where the time-out is short
_STORAGE_SECONDS = 5.0  # how long the last words may wait for a file system that does not answer
_STANDARD_ERROR = 2  # the descriptor: what it points to may change (the launchers point it to the rank's log)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What `rank` did last, as its file says. `beat` counts the writes; `position` the notes, alike on every rank.

    `standing`: seconds without a new note. `time`: of writing, Unix seconds by that host's clock.
    """

    rank: int
    beat: int
    position: int
    iteration: int
    activity: str
    standing: float
    time: float
    host: str
    process: int

    def __str__(self) -> str:
        return f"iteration {self.iteration:,}, {self.activity}"

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where there is none, or it is being written."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The ranks that did not arrive, and the sentence that says so."""

    ranks: tuple[int, ...]
    sentence: str


class _State(NamedTuple):
    """What this process is at; a new object is progress."""

    position: int
    iteration: int
    activity: str
    limited: bool
    since: float


class Watchdog:
    """This rank's notes. Does nothing by itself: `watching` makes one that watches."""

    def __init__(self) -> None:
        self.state = _State(0, 0, "starting", True, time.monotonic())

    def note(self, activity: str, iteration: int | None = None, *, limited: bool = True) -> None:
        """Say what begins now. Ranks note the same activities in the same order; what is not `limited` may take any time."""
        old = self.state
        iteration = old.iteration if iteration is None else iteration
        self.state = _State(old.position + 1, iteration, activity, limited, time.monotonic())

    def tick(self) -> None:
        """Say that the activity goes on: as often as one likes, not equally often on every rank."""
        old = self.state
        self.state = _State(old.position, old.iteration, old.activity, old.limited, time.monotonic())

    def publish(self, folder: Path, rank: int, size: int) -> None:
        """From now on the notes of this rank, of `size`, stand in the run folder, and the others' are looked for there."""


class _Watching(Watchdog):
    def __init__(self, timeout_seconds: float, on_hang: Callable[[Hang], None]) -> None:
        super().__init__()
        self.timeout, self.on_hang = timeout_seconds, on_hang
        self.interval = min(_BEAT_SECONDS, timeout_seconds / _BEATS_PER_TIMEOUT)
        self.files: list[Path] = []
        self.rank, self.beat = int(os.environ.get("RANK", "0")), 0
        self.over = threading.Event()
        self._arm()
        # Two threads: a file system that hangs holds up the writer, not the clock.
        self.threads = [
            threading.Thread(target=target, name=f"watchdog-{name}", daemon=True)
            for target, name in ((self._keep_time, "clock"), (self._write, "notes"))
        ]
        for thread in self.threads:
            thread.start()

    def publish(self, folder: Path, rank: int, size: int) -> None:
        file = activity_of(folder, rank)
        self.rank = rank
        try:
            file.parent.mkdir(exist_ok=True)
            self._write_note(file)
        except OSError as error:
            print(f"warning: {file.parent} cannot be written ({error.strerror}): a hang will say less", file=sys.stderr)
        self.files = [activity_of(folder, number) for number in range(size)]

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(_STORAGE_SECONDS)
        faulthandler.cancel_dump_traceback_later()

    def _write(self) -> None:
        while not self.over.wait(self.interval):
            if self.files:
                with contextlib.suppress(OSError):  # a full disk is no reason to end
                    self._write_note(self.files[self.rank])

    def _write_note(self, path: Path) -> None:
        """In place, padded: no moment without a file. A reader in the middle of it finds no JSON and looks again."""
        self.beat += 1
        text = json.dumps(asdict(self._own_note()))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.write(text.ljust(400).encode() + b"\n")

    def _own_note(self) -> Note:
        state = self.state
        return Note(
            rank=self.rank,
            beat=self.beat,
            position=state.position,
            iteration=state.iteration,
            activity=state.activity,
            standing=round(time.monotonic() - state.since, 3),
            time=round(time.time(), 3),
            host=socket.gethostname(),
            process=os.getpid(),
        )

    def _keep_time(self) -> None:
        seen, standing, last = self.state, 0.0, time.monotonic()
        before: dict[int, Note | None] | None = None
        while not self.over.wait(self.interval):
            self._arm()
            now = time.monotonic()
            elapsed, last = now - last, now
            if self.state is not seen or not seen.limited:
                seen, standing, before = self.state, 0.0, None
                continue
            standing += min(elapsed, 2 * self.interval)  # a job that was paused (Ctrl-Z) did not wait meanwhile
            if standing > self.timeout / 2 and before is None:
                before = self._others()
            if standing > self.timeout:
                self._end(name_the_hung(self._own_note(), standing, before or {}, self._others()))

    def _arm(self) -> None:
        """Have the process print its stacks and exit, unless the clock thread calls this again in time.

        It does not where no Python code runs any more. This is later than the time-out: the other ranks, which can say
        more, act first.
        """
        faulthandler.dump_traceback_later(self.timeout + 5 * self.interval, exit=True, file=_STANDARD_ERROR)

    def _others(self) -> dict[int, Note | None]:
        """The notes of the other ranks; {} where storage does not answer."""
        found: dict[int, Note | None] = {}

        def look() -> None:
            found.update({number: _patient_read(path) for number, path in enumerate(self.files) if number != self.rank})

        _bounded(look)
        return dict(found)

    def _end(self, hang: Hang) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.write(_STANDARD_ERROR, f"error: {hang.sentence}; the threads of rank {self.rank}:\n".encode())
        faulthandler.dump_traceback(_STANDARD_ERROR)
        _bounded(lambda: self.on_hang(hang))
        os._exit(EXIT_HUNG)


@contextlib.contextmanager
def watching(timeout_seconds: float, on_hang: Callable[[Hang], None] = lambda hang: None) -> Iterator[Watchdog]:
    """Watch this process while the block runs: it ends, with EXIT_HUNG, where it notes nothing for `timeout_seconds`.

    `on_hang` is told before that, in another thread.
    """
    watchdog = _Watching(timeout_seconds, on_hang)
    try:
        yield watchdog
    finally:
        watchdog.close()


def name_the_hung(own: Note, standing: float, before: dict[int, Note | None], after: dict[int, Note | None]) -> Hang:
    """Which ranks hold the job up, as seen by one that has stood still for `standing` seconds.

    `before`, `after`: the other ranks' notes, read half a time-out apart. A rank whose beats stand still is stopped or
    gone; where all answer, those hold the others up who have come least far.
    """
    notes = {own.rank: own, **{rank: note for rank, note in after.items() if note is not None}}
    silent = [rank for rank, note in after.items() if note is None or _beat(before.get(rank)) == _beat(note)]
    least = min(note.position for note in notes.values())
    hung = sorted(silent or (rank for rank, note in notes.items() if note.position == least))

    def describe(rank: int) -> str:
        if (note := notes.get(rank)) is None:
            return f"rank {rank} has left no note"
        if rank not in silent:
            return f"rank {rank} at {note} for {note.standing:.1f} s"
        gone = time.strftime("%H:%M:%S", time.localtime(note.time))
        return f"rank {rank} (process {note.process} on {note.host}) answers no more, its last word, at {gone}: {note}"

    name = "rank" if len(hung) == 1 else "ranks"
    if not after and own.position and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Hang(
            ranks=(own.rank,), sentence=f"rank {own.rank} waited {standing:.1f} s at {own}, for another rank or itself"
        )
    listed = ", ".join(map(str, hung))
    sentence = f"{name} {listed} did not arrive within {standing:.1f} s: {'; '.join(map(describe, hung))}"
    if own.rank not in hung:
        sentence += f"; rank {own.rank} waits for it at {own}"
    return Hang(ranks=tuple(hung), sentence=sentence)


def _beat(note: Note | None) -> int | None:
    return note.beat if note else None


def _patient_read(path: Path) -> Note | None:
    for _ in range(3):
        if (note := Note.read(path)) is not None:
            return note
        time.sleep(0.02)
    return None


def _bounded(call: Callable[[], object]) -> None:
    """Call, and wait only so long: what hangs may be the storage itself."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_STORAGE_SECONDS)
