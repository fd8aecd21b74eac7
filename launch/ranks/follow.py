"""The logs of processes: sending a process's output to one, and showing what another process appends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_SECONDS = 0.3


def send_output_to(log: Path) -> None:
    """Send this process's output, also that of machine code, to its log from now on."""
    with open(log, "a", encoding="utf-8") as file:
        point_output_at(file.fileno(), file.fileno())


def point_output_at(out: int, err: int) -> None:
    """Let standard output and standard error write to these file descriptors from now on."""
    for stream, descriptor in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        os.dup2(descriptor, stream.fileno())


@contextmanager
def following(log: Path) -> Iterator[None]:
    """Show on standard error what is appended to `log` while the block runs; the file may not exist yet."""
    over = threading.Event()

    def follow(position: int) -> None:
        last = False
        while not last:
            last = over.wait(INTERVAL_SECONDS)
            if log.exists():
                with open(log, errors="replace", encoding="utf-8") as file:
                    file.seek(position)
                    sys.stderr.write(file.read())
                    sys.stderr.flush()
                    position = file.tell()

    start = log.stat().st_size if log.exists() else 0
    follower = threading.Thread(target=follow, args=(start,), name="follow", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
