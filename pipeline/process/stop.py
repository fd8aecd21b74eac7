"""Turns a request to stop (Ctrl-C, the scheduler's signal, a closed terminal) into a flag that all ranks agree on.

The agreement costs one tiny all-reduce per iteration, started in one iteration and read in the next: no step waits for it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self, cast

import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.base.stopping import (
    ANNOUNCED_VARIABLE,
    ASKING,
    LOOK_SECONDS,
    SAVING,
    EndAtOnce,
    Requests,
    announcement,
    end_now,
    ended_at_once,
    exit_code,
    heeded,
    say,
)
from pipeline.process.world import World, wait_for_all_ranks

# How long a rank that was asked to stop waits for ranks that have not arrived yet: they may have ended already.
MEETING_SECONDS = 10.0
POLL_SECONDS = 0.5  # between two looks for a request that comes by another way than a signal

END = b"\0"  # ends the listener thread; the numbers of signals begin at 1
PREEMPTED, INTERRUPTED = 1.0, 2.0  # what ranks agree on: Ctrl-C on any of them is everyone's


class StopRequest:
    """Tracks requests to stop, and lets all ranks save and stop at the same iteration.

    Enter it around the whole run, call `meet` once the ranks have met, then `agreed` equally often on every rank: once per
    iteration, and once per round of an evaluation. From then on the ranks stop together. Before `meet` a rank ends alone if
    the others do not arrive within MEETING_SECONDS, and inside `ending_at_once` at once: no other rank can go on without it.
    Ctrl-C, which every launcher passes on to every rank, ends them at once until `has_work` is called: there is nothing to
    save. A second Ctrl-C always ends the process at once.

    saving: what is said to be done, such as "saving at the next iteration". checkpoints: the folder of the run's, for the last
    words after a second Ctrl-C. elsewhere: gives the number of a signal that asks this process by another way, or None; for
    processes whose signals are not their own (Ray's workers).
    """

    def __init__(
        self,
        saving: str = SAVING,
        checkpoints: Path | None = None,
        elsewhere: Callable[[], int | None] | None = None,
    ) -> None:
        self.requested = threading.Event()
        self.saving, self.checkpoints, self.elsewhere = saving, checkpoints, elsewhere
        self._requests = Requests()
        self._met = threading.Event()
        self._nothing_to_save = threading.Event()
        self._waiting: tuple[signal.Signals, float] | None = None  # a request before the ranks have met, and until when
        self._pieces = 0  # of work that would be lost
        self._saved = ""  # the last words once everything is saved
        self._announced: set[signal.Signals] = set()
        self._interrupted = False  # whether Ctrl-C is what the ranks have agreed on
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous: dict[int, object] = {}
        # The descriptor that Python writes signal numbers to, the one that it replaced, and the thread that reads them.
        self._wakeup: tuple[int, int, threading.Thread] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        # Signal handlers belong to the main thread; a worker thread (Ray) is stopped by its own controller.
        if threading.current_thread() is threading.main_thread():
            # Python's handlers wait for native code, which may be waiting for other ranks; the wakeup descriptor does not.
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            listener = threading.Thread(target=self._listen, args=(reader,), name="stop-request", daemon=True)
            listener.start()
            self._wakeup = writer, before, listener
            for number in heeded():
                self._previous[number] = signal.signal(number, self._receive)
        if self.elsewhere:
            threading.Thread(target=self._poll, args=(self.elsewhere,), name="stop-poll", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError)
        if failed and self.requested.is_set() and (not self._met.is_set() or self._interrupted_at_the_start):
            # No failure of this rank: the others were also asked to stop, and ended while it waited for them.
            end_now(self._asked_by)
        self.restore()

    @property
    def code(self) -> int:
        """What a process ends with that has saved and stopped: it says who asked."""
        return exit_code(signal.SIGINT if self._interrupted else self._asked_by)

    @property
    def _asked_by(self) -> signal.Signals:
        return self._requests.first or signal.SIGTERM

    @property
    def _interrupted_at_the_start(self) -> bool:
        """Whether a rank that had no work yet may have ended at once where this one had its first piece."""
        return self._asked_by == signal.SIGINT and self._pieces <= 1

    def restore(self) -> None:
        """Restore the previous signal handlers and end the listener."""
        self._over.set()
        for number, handler in self._previous.items():
            if self._saved and isinstance(handler, EndAtOnce):
                handler = EndAtOnce(self._saved)  # from its start the process knows of nothing that is saved
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
        if self._wakeup is not None:
            writer, before, listener = self._wakeup
            signal.set_wakeup_fd(before)
            os.write(writer, END)  # closing is not enough: a forked child may hold the pipe open
            os.close(writer)
            # The thread holds a reference to this object. If its reference were the last, it would free the process group
            # while Python shuts down, when only the main thread may do so: the process would abort.
            listener.join()
            self._wakeup = None

    def meet(self, world: World) -> None:
        """Make the ranks stop together from now on; the process group is open. A collective: every rank calls it."""
        if world.size > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
            wait_for_all_ranks()
        self._met.set()

    def has_work(self) -> None:
        """Called after each piece of work that would be lost: Ctrl-C ends nothing at once any more."""
        self._pieces += 1

    def all_is_saved(self, words: str) -> None:
        """From now on a request ends this process at once, with `words` as its last line: what is left may be done later."""
        self._saved = words

    @contextmanager
    def ending_at_once(self, where: bool = True) -> Iterator[None]:
        """Let a request end this process at once while the block runs, if `where`: for what takes hours and saves nothing."""
        if where:
            self._nothing_to_save.set()
            if self.requested.is_set():
                end_now(self._asked_by)
        try:
            yield
        finally:
            self._nothing_to_save.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._requests.note(number)
        self.requested.set()

    def _listen(self, reader: int) -> None:
        while (number := self._next(reader)) != END:
            if number[0] in ASKING:
                self._take(signal.Signals(number[0]))
        os.close(reader)

    def _next(self, reader: int) -> bytes:
        """The number of the next signal. Until it comes, a request that waits for the ranks to meet is looked after."""
        while self._waiting and not select.select([reader], [], [], LOOK_SECONDS)[0]:
            number, until = self._waiting
            if self._met.is_set():
                self._waiting = None
                self._announce(number)
            elif time.monotonic() > until:
                end_now(number)
        return os.read(reader, 1)

    def _poll(self, elsewhere: Callable[[], int | None]) -> None:
        while not self._over.wait(POLL_SECONDS):
            if (number := elsewhere()) is not None:
                self._receive(number, None)  # whoever asked has told the user
                return

    def _take(self, number: signal.Signals) -> None:
        meaning = self._requests.take(number)
        self.requested.set()
        if meaning == "same":
            return
        if self._saved:
            end_now(number, self._saved)
        if meaning == "end":
            end_now(number, ended_at_once(self.checkpoints))
        if self._nothing_to_save.is_set() or (number == signal.SIGINT and not self._pieces):
            end_now(number)
        if self._met.is_set():
            self._announce(number)
        elif self._waiting is None:
            self._waiting = number, time.monotonic() + MEETING_SECONDS

    def _announce(self, number: signal.Signals) -> None:
        """Say what happens now: once for each signal, so that Ctrl-C after SIGTERM is answered, too."""
        if number not in self._announced and ANNOUNCED_VARIABLE not in os.environ:
            self._announced.add(number)
            say(announcement(number, self.saving))

    def agreed(self) -> bool:
        """Return True, on every rank at the same call, at the latest one call after any rank was asked to stop."""
        if self._group is None:
            self._interrupted = self._asked_by == signal.SIGINT
            return self.requested.is_set()
        stop = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            stop, self._interrupted = bool(flag.item()), flag.item() == INTERRUPTED
        flag = torch.tensor([self._flag()])
        started = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert started is not None
        self._pending = (started, flag)
        if stop:  # nothing must be in flight when the group closes
            started.wait()
        return stop

    def _flag(self) -> float:
        if not self.requested.is_set():
            return 0.0
        return INTERRUPTED if self._asked_by == signal.SIGINT else PREEMPTED

    def drain(self) -> None:
        """Wait for the agreement in flight. Every rank calls this at the end of training."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
