"""Reads the byte ranges of shards, with no more of them open than the limit of open files allows."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.regular import open_regular

_OTHERS = 512  # descriptors that a process may need besides a split's shards
_LEAST_OTHERS = 128  # that are left to it under a low hard limit
_LEAST = 8  # shards open at once, whatever the limit


class OpenShards:
    """The shards of a folder, opened when they are first read. Thread-safe.

    As many stay open as the limit of open files leaves room for; beyond, the one that was read longest ago is closed. Readers
    hold the file that they read, so that none is closed under them.
    """

    def __init__(self, folder: Path, sizes: Sequence[tuple[str, int]]) -> None:
        """sizes: path below the folder and bytes of each shard, as the manifest states them."""
        # Of a function that knows no OpenShards: a cycle of references would keep the files open until the next collection.
        self._opened = lru_cache(maxsize=_most_open(len(sizes)))(partial(_open, folder, tuple(sizes)))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return up to `size` bytes, fewer at the shard's end.

        Raises OSError; UserError if the shard cannot be opened, or has not the size that the manifest states.
        """
        file = self._opened(shard)
        return os.pread(file.descriptor, size, offset)

    def close(self) -> None:
        """Close all; a later read opens again."""
        self._opened.cache_clear()


class _File:
    """An open descriptor, closed with the last reference to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open(folder: Path, sizes: tuple[tuple[str, int], ...], shard: int) -> _File:
    name, size = sizes[shard]
    path = folder / name
    try:
        with open_regular(path) as opened:
            file = _File(os.dup(opened.fileno()))
    except OSError as error:
        raise UserError(f"the shard {path} cannot be opened ({error.strerror}): check the dataset") from None
    if (found := os.fstat(file.descriptor).st_size) != size:
        raise UserError(
            f"the shard {path} has {found:,} bytes, the manifest says {size:,}: it is cut off or another file, "
            "prepare, copy or upload it again"
        )
    return file


def _most_open(files: int) -> int:
    """Raise the soft limit of open files as far as `files` need it, and return how many of them to keep open at most.

    ImageNet at 1,000 samples per shard is 1,282 files, the usual soft limit 1,024. Under a hard limit that is too low, a split
    takes half of what is left: a training has two open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + _OTHERS
    if soft == resource.RLIM_INFINITY:
        return files
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return files if soft >= wanted else min(files, max(_LEAST, (soft - _LEAST_OTHERS) // 2))
