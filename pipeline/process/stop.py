"""A request to stop (a signal of the scheduler or the user's SIGTERM) becomes a flag that all ranks agree on.

Agreement costs one tiny all-reduce per iteration, started at one and read at the next: the step does not wait for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self, cast

import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.process.signals import SIGNALS, end_now
from pipeline.process.world import World, wait_for_all_ranks

# How long a rank that was asked to stop goes on waiting for ranks that are still on their way: they may have ended.
MEETING_SECONDS = 10.0

END = b"\0"  # to the thread that listens for signals, whose numbers begin at 1


class StopRequest:
    """Whether to save and stop. A context manager around everything; `meet` once the ranks have met, then `agreed()` equally
    often on every rank: once an iteration, and once a round of an evaluation.

    Ranks that have met stop together, there. Before that each may end by itself, since no other can have gone on without it;
    and it does where the others do not come within MEETING_SECONDS. So it may in `ending_at_once`, for the same reason.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._met = threading.Event()
        self._nothing_to_save = threading.Event()
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous: dict[int, object] = {}
        # Where signals are heard: the descriptor they are written to, the one before it, and the thread that reads them.
        self._wakeup: tuple[int, int, threading.Thread] | None = None

    def __enter__(self) -> Self:
        # Signal handlers belong to the main thread; a worker thread (Ray) is stopped by its own controller.
        if threading.current_thread() is threading.main_thread():
            # Python's handlers wait for machine code to return, which may be waiting for other ranks. Bytes do not.
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            listener = threading.Thread(target=self._listen, args=(reader,), name="stop-request", daemon=True)
            listener.start()
            self._wakeup = writer, before, listener
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError)
        if failed and self.requested.is_set() and not self._met.is_set():
            end_now()  # this rank did not fail: the others were asked to stop, too, and ended while it waited for them
        self.restore()

    def restore(self) -> None:
        """Give the signals back: whatever had to be saved is."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
        if self._wakeup is not None:
            writer, before, listener = self._wakeup
            signal.set_wakeup_fd(before)
            os.write(writer, END)  # closing is not enough: a forked child may hold the pipe open
            os.close(writer)
            self._met.set()  # the thread may still wait for it
            # The thread holds this object. If it were the last to let go, it would free the process group while Python
            # shuts down, when only the main thread may: the process would abort.
            listener.join()
            self._wakeup = None

    def meet(self, world: World) -> None:
        """The process group is open: from now on the ranks stop together. A collective."""
        if world.size > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
            wait_for_all_ranks()
        self._met.set()

    @contextmanager
    def ending_at_once(self, where: bool = True) -> Iterator[None]:
        """While the block runs, `where` that is so, a request ends this process: it may take hours and changes nothing."""
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
        """True, on every rank at the same call, at the latest one call after any rank was asked to stop."""
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
        if stop:  # nothing may be in flight when the group closes
            started.wait()
        return stop

    def drain(self) -> None:
        """Wait for the agreement in flight (at the end of training, on every rank)."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
