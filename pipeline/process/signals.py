"""Requests to stop that come before training can answer them: during the imports and while the ranks meet.

Imports nothing but the standard library, so that a command can call `end_on_request` before the imports that take seconds.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from pipeline.base.exits import EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def end_on_request() -> None:
    """From now on a request ends this process at once, with EXIT_PREEMPTED: there is nothing to save yet."""
    for number in SIGNALS:
        signal.signal(number, _end)


def end_now() -> None:
    # Not by an exception: the import that it interrupts, or a callback of machine code, might swallow it.
    os.write(2, b"ended on request: the same command goes on where it was\n")
    os._exit(EXIT_PREEMPTED)


def _end(number: int, frame: FrameType | None) -> None:
    end_now()
