"""How a process ends: as Python ends it, or at once where what is open must not be closed.

A process that has had a process group ends at once. Closing NCCL's communicators takes every rank of the host: a rank that
failed alone would wait in Python's clean-up for ranks that wait for it in a kernel (NVIDIA/nccl#863 and #1777), and nobody
would read why it failed. With gloo the clean-up destroys threads that may still run, and aborts the process ("terminate
called without an active exception"): a finished run would end with exit code 134.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

_at_once = False


def skip_cleanup() -> None:
    """Let `leave` end this process at once: without exit handlers, destructors, and waiting for threads."""
    global _at_once
    _at_once = True


def cleanup_is_skipped() -> bool:
    return _at_once


def leave(code: int) -> NoReturn:
    """End this process with exit code `code`: by SystemExit, or at once, what was printed written, after `skip_cleanup`.

    Called last, where nothing is left to be written and whoever must know has been told of a failure.
    """
    if not _at_once:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
