"""Reading files that may be none: a pipe, a device, a folder. Imports the standard library alone."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError also for what is none: opening a pipe that nobody writes would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENXIO, "Is a pipe or a device", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_gone(path: Path) -> bool:
    """Whether nothing stands at `path`; False where that cannot be told (a folder that may not be entered, a storage error)."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def read_regular(path: Path) -> bytes:
    """The contents of a file. Raises as `open_regular`."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a read names no file
        raise
