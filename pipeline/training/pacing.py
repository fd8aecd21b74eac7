"""How far the host runs ahead of the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

# Updates that the device may still have to do when the host starts another. Two keep the device busy while the host queues
# the next; each further one would hold a mini-batch of images in the device's memory (77 MB for 256 in bf16), for nothing.
# Without a bound only CUDA's launch queue sets one, and an update that is replayed as a CUDA graph takes one place in it.
AHEAD = 2


class Event(Protocol):
    """A place in the device's queue."""

    def synchronize(self) -> None:
        """Wait until the device has come past it."""


class Pacing:
    """Lets the host be AHEAD updates ahead of the device. mark: puts an event at the end of the device's queue."""

    def __init__(self, mark: Callable[[], Event]) -> None:
        self._mark = mark
        self._ahead: deque[Event] = deque()

    def queued(self) -> None:
        """Call after each update; returns once the device has at most AHEAD updates left."""
        self._ahead.append(self._mark())
        if len(self._ahead) > AHEAD:
            self._ahead.popleft().synchronize()


def pacing(device: torch.device) -> Pacing | None:
    """None on a CPU, which computes an update before the next one can be queued."""
    if device.type != "cuda":
        return None

    def mark() -> Event:
        event = torch.cuda.Event(blocking=True)  # a waiting thread sleeps: the loader's threads need the core
        event.record(torch.cuda.current_stream(device))
        return event

    return Pacing(mark)
