"""The clock behind images/s."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the time spent on updates: evaluation and checkpoints pause it."""

    def __init__(self) -> None:
        self.updates, self.started, self.excluded, self.waited = 0, time.monotonic(), 0.0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.excluded += time.monotonic() - started

    def take(self, wait_seconds: float) -> tuple[float, int, float]:
        """(seconds, updates, seconds waited for data) since the last call."""
        now = time.monotonic()
        result = (max(now - self.started - self.excluded, 1e-9), self.updates, wait_seconds - self.waited)
        self.updates, self.started, self.excluded, self.waited = 0, now, 0.0, wait_seconds
        return result
