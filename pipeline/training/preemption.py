"""A request to stop (a signal of the scheduler or the user's SIGTERM) becomes a flag that all ranks agree on.

Agreement costs one tiny all-reduce per iteration, started at one and read at the next: the step does not wait for it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self, cast

import torch
import torch.distributed as dist

from pipeline.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether to save and stop. Use as a context manager; `agreed()` once an iteration, on every rank."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.requested = threading.Event()
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Signal handlers belong to the main thread; a worker thread (Ray) is stopped by its own controller.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested.set()

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
