"""Which rank holds the others up: each measures how long it waits for the sum of an update's gradients.

All ranks take equally long for an update, because they wait for one another: the slow one is the one that waits least. What
an update takes without that wait is a rank's own time; it holds the loader's waits and the computing. Ranks that share a
normalization group wait for one another inside the computing, too: only differences between groups are seen there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

SLOW_RATIO = 1.2  # a rank's own time over that of the others, from which on it is called slow
# Log points at which the same rank is slow, and the seconds that they span, before it is said.
SLOW_IN_A_ROW, SLOW_SECONDS = 3, 30.0


class SumWaits:
    """Adds up how long this rank waited for the sums of its gradients: by the host's clock, on a GPU by events in its streams.

    (Not measured on several GPUs.)
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds, self._began = 0.0, 0.0
        self._start: torch.cuda.Event | None = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """This rank's gradients are computed; on a GPU: queued in the current stream."""
        if self.on_gpu:
            self._start = _recorded()
        else:
            self._began = time.monotonic()

    def end(self) -> None:
        """They are summed over the ranks; on a GPU: in the current stream."""
        if not self.on_gpu:
            self._seconds += time.monotonic() - self._began
        elif self._start is not None:
            self._events.append((self._start, _recorded()))

    def take(self) -> float:
        """Seconds since the last call. Only updates that the device has finished count, which leaves out at most the latest."""
        for start, end in self._events:
            if end.query():
                self._seconds += start.elapsed_time(end) / 1000
        seconds, self._seconds, self._events = self._seconds, 0.0, []
        return seconds


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """The slowest rank between two log points. ratio: its own time over the median of the others'. data_share: its waits for
    data over all its own time.
    """

    rank: int
    ratio: float
    data_share: float

    def metrics(self) -> dict[str, float]:
        return {
            "slowest_rank": self.rank,
            "slowest_rank_ratio": self.ratio,
            "slowest_rank_data_wait_share": self.data_share,
        }


def slowest(own: Sequence[float], data: Sequence[float]) -> Slowest:
    """Of the ranks with these own times and waits for data, seconds; at least two ranks."""
    rank = max(range(len(own)), key=own.__getitem__)
    others = median(seconds for number, seconds in enumerate(own) if number != rank)
    return Slowest(
        rank=rank, ratio=own[rank] / max(others, 1e-9), data_share=min(1.0, data[rank] / max(own[rank], 1e-9))
    )


class Watch:
    """Notices a rank that is slow at several log points in a row. hosts: of all ranks, by rank."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self._rank, self._points, self._seconds, self._told = -1, 0, 0.0, False

    def see(self, found: Slowest, seconds: float) -> str | None:
        """A sentence where a rank has been slow for long enough, once for each time. seconds: since the last log point."""
        if found.ratio < SLOW_RATIO:
            self._rank = -1
            return None
        if found.rank != self._rank:
            self._rank, self._points, self._seconds, self._told = found.rank, 0, 0.0, False
        self._points, self._seconds = self._points + 1, self._seconds + seconds
        if self._told or self._points < SLOW_IN_A_ROW or self._seconds < SLOW_SECONDS:
            return None
        self._told = True
        host = f" ({self.hosts[found.rank]})" if self.hosts else ""
        return (
            f"rank {found.rank}{host} holds the others up: it takes {found.ratio:.2f} times their time for an update, "
            f"{100 * found.data_share:.0f}% of it waiting for data"
        )
