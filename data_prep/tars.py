"""Tars read in place: one pass over their headers, then every member is a byte range. Nothing is ever extracted."""

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
HEADER_BUFFER = 4096  # a header and what tarfile looks at around it, in one read


class Member(NamedTuple):
    """A regular file in a tar: bytes [offset, offset + size) of the file that holds the tar. name: its base name."""

    name: str
    offset: int
    size: int


class Window(io.RawIOBase):
    """Bytes [start, start + size) of an open file as a file of their own. Any number of them may be read at once."""

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

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.size - self.position))
        data = os.pread(self.descriptor, wanted, self.start + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


@contextmanager
def open_for_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """An open file's (descriptor, size)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def members(descriptor: int, start: int, size: int, place: str, *, marked: bool) -> list[Member]:
    """The regular files of the tar in bytes [start, start + size) of an open file. `place` is what messages call it.

    marked: the tar must have the end marker that tar writes, as else a tar that was cut off between two members would
    pass for a whole one. Raises UserError where the tar is cut off, damaged or holds files that are no byte ranges.
    """
    found = []
    with io.BufferedReader(Window(descriptor, start, size), HEADER_BUFFER) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined] # it would keep every header in memory
                    if member.islnk() or member.issym() or member.issparse():
                        raise UserError(f"{place} holds a link or a sparse file ({member.name}): pack its files whole")
                    if member.isreg():
                        found.append(Member(os.path.basename(member.name), start + member.offset_data, member.size))
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError("its last file goes beyond its end")
                end = tar.offset
        except tarfile.TarError as error:
            raise UserError(f"{place} is cut off or damaged ({error}): get it again") from None
        file.seek(end)
        tail = file.read(BLOCK)
    if tail != bytes(BLOCK) and (marked or tail):
        raise UserError(f"{place} is cut off or damaged after {len(found):,} files: get it again")
    return found
