"""The dataset folder while it is being made.

All files are written into DEST/.partial and moved to their places when all of them are complete and on the disk; the
manifest, which makes a folder a dataset, is moved last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.command import UserError, describe_os_error
from pipeline.base.files import TEMPORARY_SUFFIX, sync_folder
from pipeline.base.lock import NoLocksError, lock
from pipeline.data.dataset import MANIFEST

PARTIAL = ".partial"
LOCK = "lock"
NOT_OURS = ("lost+found",)  # made by a file system in the root of a volume


def check_destination(destination: Path) -> None:
    """Raise UserError unless `destination` is free, an interrupted preparation or a dataset."""
    if not destination.exists() and not destination.is_symlink():
        return
    if not destination.is_dir():
        raise UserError(f"the destination {destination} is a file: give a folder")
    names = {entry.name for entry in destination.iterdir()} - set(NOT_OURS)
    if names and MANIFEST not in names and PARTIAL not in names:
        raise UserError(
            f"the destination {destination} holds other files (for example '{min(names)}') and no dataset: "
            "give an empty or a new folder"
        )


@contextmanager
def writing_into(destination: Path) -> Iterator[None]:
    """Raise a UserError in place of an OSError that no command explains (a failing disk, a folder that has vanished)."""
    try:
        yield
    except OSError as error:
        if describe_os_error(error) is not None:
            raise
        raise UserError(
            f"{error.filename or destination} cannot be read or written ({error.strerror or error}): "
            f"look after {destination}, then start the same command again"
        ) from error


@contextmanager
def locked_workspace(destination: Path) -> Iterator[Path]:
    """Lock DEST/.partial for this process and yield it; it is kept for the next run. Raises UserError if it is locked."""
    workspace = destination / PARTIAL
    workspace.mkdir(parents=True, exist_ok=True)
    with open(workspace / LOCK, "w", encoding="utf-8") as file:
        try:
            if not lock(file):
                raise UserError(f"another process is preparing {destination}: wait for it or choose another folder")
        except NoLocksError:
            print(f"{destination} cannot be locked: do not start a second preparation of it", file=sys.stderr)
        yield workspace


def recover(destination: Path, workspace: Path, published: list[str], files: set[str]) -> None:
    """Restore the state from which an interrupted preparation continues.

    Undoes an interrupted publication, and removes half-written files and those of other settings (not in `files`).
    """
    for left in workspace.rglob(f"*{TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)
    for name in published:
        if (destination / name).exists():
            os.replace(destination / name, workspace / name)
        if (workspace / name).is_dir():
            for path in (workspace / name).iterdir():
                if f"{name}/{path.name}" not in files:
                    path.unlink()


def publish(destination: Path, workspace: Path, names: list[str]) -> None:
    """Move finished folders and files into place in the order of `names`, the manifest last. Their bytes are on the disk."""
    for name in names:
        if (workspace / name).is_dir():
            sync_folder(workspace / name)
    for name in names[:-1]:
        os.replace(workspace / name, destination / name)
    sync_folder(destination)
    os.replace(workspace / names[-1], destination / names[-1])
    sync_folder(destination)
