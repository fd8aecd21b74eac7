"""Keeps memory alive that the GPU still reads.

DALI frees its buffers in the order of its own streams, which know nothing of torch's. So a buffer that torch's kernels read
must outlive them on the host as well.
"""

from __future__ import annotations

from collections import deque

import torch


class Lent:
    """Objects whose memory is lent to work on a GPU, each until its event has happened. Not thread-safe."""

    def __init__(self, at_most: int) -> None:
        """at_most: so many are lent at once; then `lend` waits for the oldest."""
        assert at_most > 0
        self.at_most = at_most
        self._lent: deque[tuple[torch.cuda.Event, object]] = deque()

    def __len__(self) -> int:
        return len(self._lent)

    def lend(self, event: torch.cuda.Event, owner: object) -> None:
        """Keep `owner` until `event`, which was recorded behind the last work that reads its memory."""
        while self._lent and (self._lent[0][0].query() or len(self._lent) >= self.at_most):
            self._release_oldest()
        self._lent.append((event, owner))

    def wait(self) -> None:
        """Wait for all events and let everything go."""
        while self._lent:
            self._release_oldest()

    def _release_oldest(self) -> None:
        oldest, _ = self._lent[0]
        oldest.synchronize()  # while the owner is still held
        self._lent.popleft()
