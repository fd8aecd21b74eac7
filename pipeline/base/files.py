"""Reading and writing files: a file appears under its name only when it is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline.base.command import UserError
from pipeline.base.regular import kind_of

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is complete and on the disk; an exception leaves no file.

    Raises OSError also where a device, a FIFO or a socket stands there, or a link to one: a file in its place would take it
    away, /dev/null from everyone.
    """
    check_replaceable(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a write to a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raise OSError where something stands at `path`, or where its link leads, that is no file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there; or writing says what is wrong
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, f"it is {kind_of(mode)}, not a file", str(path))


def check_room(*paths: Path, size: int = 1) -> None:
    """Find out, before hours of work, whether files of `size` bytes can be written. Makes their folders; leaves no file.

    Raises OSError as writing would (a read-only folder, a full disk, a folder of that name). What changes until then it
    cannot know.
    """
    for path in paths:
        _try_to_write(path, size)


def _try_to_write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(_Tried), replacing(path) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot reserve
                raise
        raise _Tried


class _Tried(Exception):  # noqa: N818 - no error
    """Ends `replacing` without a file."""


def write_text(path: Path, text: str) -> None:
    """Publish a small text file, in UTF-8. The bytes of a name that is not UTF-8 are written as `\\udcff`, as JSON has them."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Put the entries of a folder (new and renamed files) on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path, what: str, remedy: str = "give an existing file") -> Any:
    """The value of a YAML file that a user gave; `what` names the file in the message. Raises UserError if reading fails."""
    try:
        return yaml.safe_load(path.read_bytes().decode())  # YAML is UTF-8, whatever this process's locale
    except RecursionError:
        raise UserError(f"the {what} {path} is nested too deeply: {remedy}") from None
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read ({error.strerror}): {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not YAML: {' '.join(str(error).split())}") from None
