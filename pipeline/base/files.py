"""Files that appear under their names only when complete."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import yaml

from pipeline.base.command import UserError

TEMPORARY_SUFFIX = ".tmp"


class replacing:  # noqa: N801 - read as the statement it is: `with replacing(path) as file`
    """Write a file that appears under its name only when complete and on the disk; an exception leaves nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")

    def __enter__(self) -> IO[bytes]:
        self.file = open(self.temporary, "wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.temporary, self.path)
        except OSError as failure:
            failure.filename = failure.filename or str(self.path)
            raise
        finally:
            self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self.path)  # writing to a full disk does not say where


def write_text(path: Path, text: str) -> None:
    """Publish a small text file."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Put a folder's entries (files made, renamed) on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path, what: str, remedy: str = "give an existing file") -> Any:
    """The value of a YAML file that a user gave; `what` it is, for the sentence. Raises UserError where it is not readable."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read ({error.strerror}): {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not YAML: {' '.join(str(error).split())}") from None
