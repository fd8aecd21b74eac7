"""Locks on files (flock). Lustre mounted without its option flock has no locks, nor have some FUSE and network file systems."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO, Any

from pipeline.base.command import UserError

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class NoLocksError(UserError):
    """The file system of a file that is to be locked has no locks."""


def lock(file: IO[Any], *, wait: bool = False, elsewhere: str = "use another folder") -> bool:
    """Take the exclusive lock of an open file; False where another process holds it. Closing the file gives the lock back.

    `wait`: until the other process has given it back. `elsewhere`: the remedy that NoLocksError names. Raises NoLocksError.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        sentence = (
            f"{Path(file.name).parent} is on a file system without locks (flock): mount it with flock, or {elsewhere}"
        )
        raise NoLocksError(sentence) from None
    return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the exclusive lock of a file. False where there is no such file, or where it has no locks."""
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
