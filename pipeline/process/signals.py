"""Stop requests that arrive before training can handle them: during the imports and while the ranks meet.

This module imports the standard library alone, so that a command can call `end_on_request` before the slow imports.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from pipeline.base.exits import EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def end_on_request() -> None:
    """Install handlers by which a stop signal ends this process at once, with EXIT_PREEMPTED: nothing has to be saved yet."""
    for number in SIGNALS:
        signal.signal(number, _end)


def end_now() -> None:
    # Not by an exception: the interrupted import, or a callback of native code, might swallow it.
    os.write(2, b"stopped on request, nothing had to be saved: the same command continues the run\n")
    os._exit(EXIT_PREEMPTED)


def _end(number: int, frame: FrameType | None) -> None:
    end_now()
