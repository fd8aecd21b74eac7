"""Reading files that may be none: a pipe, a device, a folder. Imports the standard library alone."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def kind_of(mode: int) -> str:
    """What stands somewhere, in words, by its mode (`os.stat_result.st_mode`)."""
    kinds = {stat.S_ISREG: "a file", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    return next((words for is_one, words in kinds.items() if is_one(mode)), "a device")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError also for what is none: opening a pipe that nobody writes would wait for ever."""
    _check_regular(path, os.stat(path).st_mode)  # first, because opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)  # a FIFO may have been put there since
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(number, f"it is {kind_of(mode)}, not a file", str(path))


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
