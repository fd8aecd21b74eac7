"""Reading and writing files: a file appears under its name only when it is complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline.base.command import UserError

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is complete and on the disk; an exception leaves no file."""
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
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read ({error.strerror}): {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not YAML: {' '.join(str(error).split())}") from None
