"""Ends a job within the time-out when a rank stops, dies or hangs, and names that rank.

Every rank notes each activity that it begins (`note`, below a microsecond). Once a second a thread writes the latest note to
activity/rank-K.json of the run folder, where the other ranks can read what a silent rank did last. A rank whose notes stand
still for the time-out reads those files, names the ranks that did not arrive, writes the Python stacks of all its threads
to its log, and ends its process; its launcher then ends the other ranks.

    a rank is held up                         who notices
    in Python (the loader, a lock, storage)   the rank itself, and the others, who wait for it
    stopped, dead, or its host gone           the others
    in native code that holds the GIL         the others, and in the rank itself a thread of faulthandler, which needs no GIL
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.base.exits import EXIT_HUNG
from pipeline.base.layout import activity_of
from pipeline.base.output import is_read, write_now
from pipeline.process.notes import Board, FileBoard, Note
from pipeline.process.waiting import WAITED_SECONDS, Reminder, waits_for

# Collectives time out this much later than the watchdog, because the watchdog can say more.
COLLECTIVE_GRACE_SECONDS = 30.0

_BEAT_SECONDS = 1.0
_BEATS_PER_TIMEOUT = 20  # at least, where the time-out is short
_STORAGE_SECONDS = 5.0  # how long the final report waits for a file system that does not answer
_STANDARD_ERROR = 2  # the descriptor, because launchers redirect it to the rank's log


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The ranks that did not arrive, and an error message that names them."""

    ranks: tuple[int, ...]
    sentence: str


class _State(NamedTuple):
    """The current activity of this process; every new object counts as progress."""

    position: int
    iteration: int
    activity: str
    limited: bool
    since: float


class Watchdog:
    """Keeps this rank's notes. This class watches nothing; `watching` makes a watchdog that does."""

    def __init__(self) -> None:
        self.state = _State(0, 0, "starting", True, time.monotonic())

    def note(self, activity: str, iteration: int | None = None, *, limited: bool = True) -> None:
        """Note the activity that begins now. All ranks note the same ones in the same order; only `limited` ones time out."""
        position, latest = self.state.position + 1, self.state.iteration
        self.state = _State(position, latest if iteration is None else iteration, activity, limited, time.monotonic())

    def tick(self) -> None:
        """Report that the activity makes progress: at any time, and not necessarily equally often on every rank."""
        self.state = self.state._replace(since=time.monotonic())

    def share(self, board: Board) -> None:
        """Leave this rank's notes on `board`, and look there for those of the others, until `publish` is called."""

    def publish(self, folder: Path, rank: int, size: int) -> None:
        """Write this rank's notes to the run `folder` from now on, and look there for those of the other `size` - 1 ranks."""


class _Watching(Watchdog):
    def __init__(self, timeout_seconds: float, on_hang: Callable[[Hang], None]) -> None:
        super().__init__()
        self.timeout, self.on_hang = timeout_seconds, on_hang
        self.interval = min(_BEAT_SECONDS, timeout_seconds / _BEATS_PER_TIMEOUT)
        self.board: Board | None = None
        self.rank, self.beat = int(os.environ.get("RANK", "0")), 0
        self.over = threading.Event()
        self._arm()
        # Two threads, because a hanging file system holds up the writer and must not hold up the clock.
        self.threads = [
            threading.Thread(target=target, name=f"watchdog-{name}", daemon=True)
            for target, name in ((self._keep_time, "clock"), (self._write, "notes"))
        ]
        for thread in self.threads:
            thread.start()

    def share(self, board: Board) -> None:
        self.board = board

    def publish(self, folder: Path, rank: int, size: int) -> None:
        board = FileBoard([activity_of(folder, number) for number in range(size)])
        file = board.paths[rank]
        self.rank = rank
        try:
            file.parent.mkdir(exist_ok=True)
            self._write_note(board)
        except OSError as error:
            print(
                f"warning: {file.parent} cannot be written ({error.strerror}): hang reports will say less",
                file=sys.stderr,
            )
        self.board = board

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(_STORAGE_SECONDS)
        faulthandler.cancel_dump_traceback_later()

    def _write(self) -> None:
        while not self.over.wait(self.interval):
            if (board := self.board) is not None:
                with contextlib.suppress(
                    OSError, RuntimeError
                ):  # a full disk, a store that is gone, must not end the run
                    self._write_note(board)

    def _write_note(self, board: Board) -> None:
        self.beat += 1
        board.write(self.own_note())

    def own_note(self) -> Note:
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
        teller = _Teller(self)
        while not self.over.wait(self.interval):
            self._arm()
            now = time.monotonic()
            elapsed, last = now - last, now
            if self.state is not seen or not seen.limited:
                seen, standing, before, teller = self.state, 0.0, None, _Teller(self)
                continue
            standing += min(elapsed, 2 * self.interval)  # the time for which a job was paused (Ctrl-Z) does not count
            if standing > self.timeout / 2 and before is None:
                before = self.others()
            if standing > self.timeout:
                self._end(name_the_hung(self.own_note(), standing, before or {}, self.others()))
            with contextlib.suppress(Exception):  # of a damaged note, say: no message may end the work
                teller.look(standing)

    def _arm(self) -> None:
        """Make faulthandler print the stacks and exit, unless the clock thread calls this again in time.

        The clock thread cannot while native code holds the GIL. faulthandler acts later than the time-out, because the other
        ranks can say more and should act first.
        """
        faulthandler.dump_traceback_later(self.timeout + 5 * self.interval, exit=True, file=_STANDARD_ERROR)

    def others(self, ranks: Iterable[int] | None = None) -> dict[int, Note | None]:
        """Return the notes of the other ranks, or of these; {} if storage or the store does not answer."""
        notes: dict[int, Note | None] = {}
        board = self.board

        def read() -> None:
            with contextlib.suppress(RuntimeError):  # a store that is gone
                if board is not None:
                    asked = range(board.size) if ranks is None else ranks
                    notes.update({rank: board.read(rank) for rank in asked if rank != self.rank})

        _bounded(read)
        return dict(notes)

    def _end(self, hang: Hang) -> None:
        faulthandler.cancel_dump_traceback_later()
        write_now(f"error: {hang.sentence}; the threads of rank {self.rank}:\n")
        if is_read():  # nobody may read the terminal or the pipe, and this must end the process
            faulthandler.dump_traceback(_STANDARD_ERROR)
        _bounded(lambda: self.on_hang(hang))
        os._exit(EXIT_HUNG)


class _Teller:
    """Tells, while a rank stands still at one note, for whom it waits: on standard error, rank 0's being the job's.

    Rank 0 looks at the notes of all; the others look at rank 0's alone, so that a thousand ranks do not read a million.
    """

    def __init__(self, watching: _Watching) -> None:
        self.watching, self.reminder = watching, Reminder()
        self.looked = False
        self.before: dict[int, Note | None] = {}

    def look(self, standing: float) -> None:
        """standing: seconds since this rank's latest note."""
        if not self.looked and standing > WAITED_SECONDS / 2:
            self.looked, self.before = True, self._others()
        if self.reminder.due(standing) and (now := self._others()):
            if sentence := waits_for(self.watching.own_note(), self.before, now):
                write_now(f"{sentence}\n")
            self.before = now

    def _others(self) -> dict[int, Note | None]:
        return self.watching.others(None if self.watching.rank == 0 else [0])


@contextlib.contextmanager
def watching(timeout_seconds: float, on_hang: Callable[[Hang], None] = lambda hang: None) -> Iterator[Watchdog]:
    """Watch this process while the block runs: end it, with EXIT_HUNG, if it notes nothing for `timeout_seconds`.

    `on_hang` is called before the end, in another thread.
    """
    watchdog = _Watching(timeout_seconds, on_hang)
    try:
        yield watchdog
    finally:
        watchdog.close()


def name_the_hung(asker: Note, standing: float, before: dict[int, Note | None], after: dict[int, Note | None]) -> Hang:
    """Name the ranks that hold up the job, as seen by the rank of the note `asker`, which has waited for `standing` seconds.

    `before`, `after`: the other ranks' notes, read half a time-out apart. A rank whose beat did not advance is stopped or
    gone; if all advanced, the ranks with the least position hold the others up.
    """
    notes = {asker.rank: asker, **{rank: note for rank, note in after.items() if note is not None}}
    beats = {rank: note.beat for rank, note in before.items() if note is not None}
    silent = [rank for rank, note in after.items() if note is None or note.beat == beats.get(rank)]
    least = min(note.position for note in notes.values())
    hung = sorted(silent or (rank for rank, note in notes.items() if note.position == least))

    def describe(rank: int) -> str:
        if (note := notes.get(rank)) is None:
            return f"rank {rank} has left no note"
        if rank not in silent:
            return f"rank {rank} at {note} for {note.standing:.1f} s"
        gone = time.strftime("%H:%M:%S", time.localtime(note.time))
        return (
            f"rank {rank} (process {note.process} on {note.host}) stopped responding, its last note at {gone}: {note}"
        )

    name = "rank" if len(hung) == 1 else "ranks"
    if not after and asker.position and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        where = f"rank {asker.rank} made no progress for {standing:.1f} s at {asker}"
        return Hang(ranks=(asker.rank,), sentence=f"{where}: it waits for another rank, or hangs itself")
    listed = ", ".join(map(str, hung))
    sentence = f"{name} {listed} did not arrive within {standing:.1f} s: {'; '.join(map(describe, hung))}"
    if asker.rank not in hung:
        sentence += f"; rank {asker.rank} waits at {asker}"
    return Hang(ranks=tuple(hung), sentence=sentence)


def _bounded(call: Callable[[], object]) -> None:
    """Call, and wait at most _STORAGE_SECONDS: the storage itself may hang."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_STORAGE_SECONDS)
