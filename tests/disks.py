"""File systems of a few MB, which become full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int, *, lazy: bool = False) -> Iterator[Path]:
    """Mount a file system at `folder`, which is made. Skips the test where none can be mounted.

    lazy: whether the end passes where a file is still open there; else it fails.
    """
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no small file system can be mounted here: that needs root and the command mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", *(["--lazy"] if lazy else []), str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file that takes all of the disk but a few blocks; its path."""
    with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return disk / "filler"
