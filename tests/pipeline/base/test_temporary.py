import os
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.base import temporary
from pipeline.base.command import UserError
from pipeline.base.temporary import short_temporary_folder

ROOM = 40


def of_length(root, length):
    """A new folder below `root` whose path has `length` bytes."""
    folder = root
    while (left := length - len(os.fsencode(folder)) - 1) > 0:
        step = min(left, 200)
        folder /= "x" * (step - 1 if left == step + 1 else step)  # so that never a slash alone is left
    folder.mkdir(parents=True)
    assert len(os.fsencode(folder)) == length
    return folder


def bind(folder):
    """Bind a socket whose path is ROOM bytes longer than the folder's."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / ("s" * (ROOM - 1))))


@pytest.fixture
def root():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_the_usual_folder_to_the_last_byte_that_a_socket_takes(root, monkeypatch):
    fits, too_long = of_length(root, 107 - ROOM), of_length(root, 108 - ROOM)
    bind(fits)
    with pytest.raises(OSError, match="too long"):
        bind(too_long)
    monkeypatch.setattr(tempfile, "tempdir", str(fits))
    assert short_temporary_folder(ROOM) == fits
    monkeypatch.setattr(tempfile, "tempdir", str(too_long))
    assert short_temporary_folder(ROOM) == Path("/tmp")


def test_folders_that_are_missing_are_passed_over(root, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(of_length(root, 400)))
    monkeypatch.setattr(temporary, "_SHORT", (root / "missing", root))
    assert short_temporary_folder(ROOM) == root
    monkeypatch.setattr(temporary, "_SHORT", (root / "missing",))
    with pytest.raises(UserError, match="set TMPDIR to a folder of at most 67 bytes"):
        short_temporary_folder(ROOM)
