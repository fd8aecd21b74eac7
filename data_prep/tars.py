"""Reads tars in place: one pass over the headers makes every member a byte range. Nothing is extracted."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.base.command import UserError

BLOCK = tarfile.BLOCKSIZE
HEADER_BUFFER = 4096  # a header and the bytes around it that tarfile needs, in one read


class Member(NamedTuple):
    """A regular file in a tar: its base name, and its bytes [offset, offset + size) of the file that holds the tar."""

    name: str
    offset: int
    size: int


class Window(io.RawIOBase):
    """The bytes [start, start + size) of an open file as a file. Several windows may be read at once."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.position = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.size - self.position))
        count = os.preadv(self.descriptor, [buffer[:wanted]], self.start + self.position)
        self.position += count
        return count


@contextmanager
def open_for_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """Open a file; yield its descriptor and its size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def members(descriptor: int, start: int, size: int, place: str, *, marked: bool) -> list[Member]:
    """List the regular files of the tar in the bytes [start, start + size) of an open file; `place`: its name in messages.

    marked: whether the tar must have tar's end marker; without one, a tar that is cut off between two members would pass as
    whole. Raises UserError if the tar is cut off, damaged or holds files that are no byte ranges.
    """
    files = []
    with io.BufferedReader(Window(descriptor, start, size), HEADER_BUFFER) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined] # else tarfile would keep every header in memory
                    if member.issparse() or member.issym() or member.islnk() or member.isdev():
                        what = "a sparse file, a link or a device"
                        raise UserError(f"{place} holds {what} ({member.name}): pack its files whole")
                    if member.isreg():
                        files.append(Member(os.path.basename(member.name), start + member.offset_data, member.size))
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError("its last file goes beyond its end")
                end = tar.offset
        except tarfile.TarError as error:
            raise UserError(f"{place} is cut off or damaged ({error}): get it again") from None
        file.seek(end)
        tail = file.read(BLOCK)
    if tail != bytes(BLOCK) and (marked or tail):
        raise UserError(f"{place} is cut off or damaged after {len(files):,} files: get it again")
    return files
