"""Files: what is none is never waited for, and whether there is room is known before the work."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from pipeline.base.command import UserError, describe_os_error
from pipeline.base.files import check_room, read_yaml, write_text
from pipeline.base.regular import read_regular
from tests.disks import small_disk


def stand(kind: str, path: Path) -> None:
    """Make what is no file under a name: a folder, a pipe ..."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, chdir(path.parent):
            made.bind(path.name)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "bad disk": "/proc/self/mem"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "loop", "bad disk"])
def test_reading_what_is_no_file_ends_at_once_with_a_sentence(tmp_path: Path, kind: str) -> None:
    stand(kind, tmp_path / "a")
    with pytest.raises(OSError) as raised:
        read_regular(tmp_path / "a")
    assert describe_os_error(raised.value), raised.value


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    stand(kind, tmp_path / "a")
    before = (tmp_path / "a").lstat()
    for write in (lambda path: write_text(path, "text"), check_room):
        with pytest.raises(OSError) as raised:
            write(tmp_path / "a")
        assert describe_os_error(raised.value) and str(tmp_path / "a") in str(describe_os_error(raised.value))
    after = (tmp_path / "a").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode) and len(list(tmp_path.iterdir())) == 1


def test_a_file_and_a_link_to_one_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("a", "link", "dangling", "new"):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0\xff")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link") == b"\0\xff"


@pytest.mark.parametrize("content", [b"[" * 10_000, b"a: \xff", b"a: ["])
def test_yaml_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"the config file .*a\.yaml is"):
        read_yaml(tmp_path / "a.yaml", "config file")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_room_is_tried_and_nothing_is_left(tmp_path: Path, disk: Path) -> None:
    check_room(disk / "new" / "a", disk / "b", size=1 << 19)
    assert [path.name for path in disk.rglob("*")] == ["new"]
    with pytest.raises(OSError) as raised:
        check_room(disk / "a", size=1 << 21)
    assert raised.value.errno == errno.ENOSPC and [path.name for path in disk.rglob("*")] == ["new"]
    (disk / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        check_room(disk / "a")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OSError) as raised:
        check_room(disk / "b")
    assert raised.value.errno == errno.EROFS
