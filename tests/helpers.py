"""What tests of all parts share: where the project lies, waiting for something to happen, processes that live or do not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.patience import limit

ROOT = Path(__file__).resolve().parents[1]


def wait_for(condition: Callable[[], object], what: str = "it", seconds: float = 60) -> float:
    """Wait until `condition()` is true; the seconds that took. Fails, naming `what`, after `limit(seconds)`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit(seconds), f"waited {limit(seconds):.0f} s in vain for {what}"
        time.sleep(0.02)
    return time.monotonic() - started


def without_gloo(printed: str) -> str:
    """What a rank printed, without the lines in which the gloo of torch 2.10 tells whom it has met."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("[Gloo] "))


def alive(pid: int) -> bool:
    """Whether the process runs or sleeps; one that has ended and was not yet waited for (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_files(folder: Path) -> list[str]:
    """The files in the folder that this process has open, once for each time."""
    files = [os.path.realpath(f"/proc/self/fd/{descriptor}") for descriptor in os.listdir("/proc/self/fd")]
    return sorted(file for file in files if file.startswith(f"{folder.resolve()}/"))


def stopped_or_dead(pid: int) -> bool:
    """Whether no thread of the process runs: signals reach its threads one after the other."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/stat"))
        return all(task.read_text().rpartition(")")[2].split()[0] in "TZX" for task in tasks)
    except (FileNotFoundError, ProcessLookupError):  # one ended meanwhile
        return stopped_or_dead(pid)
