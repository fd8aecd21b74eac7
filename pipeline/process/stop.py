"""Turns a stop request (the scheduler's signal or the user's SIGTERM) into a flag that all ranks agree on.

The agreement costs one tiny all-reduce per iteration, started in one iteration and read in the next: no step waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self, cast

import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.process.signals import SIGNALS, end_now
from pipeline.process.world import World, wait_for_all_ranks

# How long a rank that was asked to stop waits for ranks that have not arrived yet: they may have ended already.
MEETING_SECONDS = 10.0

END = b"\0"  # ends the listener thread; the numbers of signals begin at 1


class StopRequest:
    """Tracks stop requests, and lets all ranks save and stop at the same iteration.

    Enter it around the whole run, call `meet` once the ranks have met, then `agreed` equally often on every rank: once per
    iteration, and once per round of an evaluation. From then on the ranks stop together. Before `meet` a rank ends alone if
    the others do not arrive within MEETING_SECONDS, and inside `ending_at_once` at once: no other rank can go on without it.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._met = threading.Event()
        self._nothing_to_save = threading.Event()
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous: dict[int, object] = {}
        # The descriptor that Python writes signal numbers to, the one that it replaced, and the thread that reads them.
        self._wakeup: tuple[int, int, threading.Thread] | None = None

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
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError)
        if failed and self.requested.is_set() and not self._met.is_set():
            end_now()  # no failure of this rank: the others were also asked to stop, and ended while it waited for them
        self.restore()

    def restore(self) -> None:
        """Restore the previous signal handlers and end the listener: everything that had to be saved is saved."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
        if self._wakeup is not None:
            writer, before, listener = self._wakeup
            signal.set_wakeup_fd(before)
            os.write(writer, END)  # closing is not enough: a forked child may hold the pipe open
            os.close(writer)
            self._met.set()  # the thread may still be waiting for this
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

    @contextmanager
    def ending_at_once(self, where: bool = True) -> Iterator[None]:
        """Let a request end this process at once while the block runs, if `where`: for what takes hours and saves nothing."""
        if where:
            self._nothing_to_save.set()
            if self.requested.is_set():
                end_now()
        try:
            yield
        finally:
            self._nothing_to_save.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested.set()

    def _listen(self, reader: int) -> None:
        while (number := os.read(reader, 1)) != END:
            if number[0] in SIGNALS and (self._nothing_to_save.is_set() or not self._met.wait(MEETING_SECONDS)):
                end_now()
        os.close(reader)

    def agreed(self) -> bool:
        """Return True, on every rank at the same call, at the latest one call after any rank was asked to stop."""
        if self._group is None:
            return self.requested.is_set()
        stop = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor([float(self.requested.is_set())])
        started = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert started is not None
        self._pending = (started, flag)
        if stop:  # nothing must be in flight when the group closes
            started.wait()
        return stop

    def drain(self) -> None:
        """Wait for the agreement in flight. Every rank calls this at the end of training."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
