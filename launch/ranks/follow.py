"""Showing what another process appends to a file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_SECONDS = 0.3


@contextmanager
def following(log: Path) -> Iterator[None]:
    """Show on standard error what is appended to `log` while the block runs; the file may not exist yet."""
    over = threading.Event()
    start = log.stat().st_size if log.exists() else 0

    def follow() -> None:
        position, last = start, False
        while not last:
            last = over.wait(INTERVAL_SECONDS)
            if log.exists():
                with open(log, errors="replace") as file:
                    file.seek(position)
                    sys.stderr.write(file.read())
                    sys.stderr.flush()
                    position = file.tell()

    follower = threading.Thread(target=follow, name="follow", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
