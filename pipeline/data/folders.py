"""The pictures below a folder, for sharding and prediction alike: what is taken; what is passed over, counted and named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.data.images import SUFFIXES, UNREAD_SUFFIXES

NAMED = 3  # of the entries that are passed over
OTHER_KIND = "not named as a picture"
UNREAD_KIND = "{suffix} files, which are not read here: convert them to JPEG or PNG"
LOOPS = "leading to a folder that is taken already"


@dataclass(frozen=True)
class PassedOver:
    """Entries of a source that are not taken, for one reason: how many, and the first of their names."""

    why: str
    count: int
    names: tuple[str, ...]

    @staticmethod
    def of(why: str, names: Sequence[str]) -> tuple[PassedOver, ...]:
        return (PassedOver(why, len(names), tuple(nsmallest(NAMED, names))),) if names else ()

    @staticmethod
    def merged(several: Iterable[PassedOver]) -> tuple[PassedOver, ...]:
        """One for each reason, in the order of the reasons."""
        by_reason: dict[str, list[PassedOver]] = {}
        for one in several:
            by_reason.setdefault(one.why, []).append(one)
        return tuple(
            PassedOver(
                why, sum(one.count for one in parts), tuple(nsmallest(NAMED, [n for p in parts for n in p.names]))
            )
            for why, parts in sorted(by_reason.items())
        )

    @staticmethod
    def by_kind(names: Sequence[str]) -> tuple[PassedOver, ...]:
        """Of files that are not taken because of their names: pictures that cannot be read by their suffixes, and others."""
        by_reason: dict[str, list[str]] = {}
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            why = UNREAD_KIND.format(suffix=suffix) if suffix in UNREAD_SUFFIXES else OTHER_KIND
            by_reason.setdefault(why, []).append(name)
        return tuple(one for why, several in by_reason.items() for one in PassedOver.of(why, several))

    def inside(self, folder: str) -> PassedOver:
        return replace(self, names=tuple(f"{folder}/{name}" for name in self.names))

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count:,} {self.why} ({', '.join(self.names)}{more})"


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def pictures_below(folder: Path) -> tuple[list[tuple[os.DirEntry[str], str]], tuple[PassedOver, ...]]:
    """Every entry with a picture's name in `folder` and below, with its path from there; and what is passed over.

    The entries stand in no certain order. Hidden files and folders are left out without a word. Links are followed; each
    folder is taken once. An entry may be no picture in spite of its name: a dangling link, a device, even a folder. Reading
    it says so. Raises UserError if a folder cannot be read.
    """
    pictures: list[tuple[os.DirEntry[str], str]] = []
    others: list[str] = []
    loops: list[str] = []
    for entry, path in _walk(folder, loops):
        if is_image_name(entry.name):
            pictures.append((entry, path))
        else:
            others.append(path)
    return pictures, (*PassedOver.by_kind(others), *PassedOver.of(LOOPS, loops))


def _walk(top: Path, loops: list[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield every entry in `top` and below that is no folder, and folders with an image's name, each with its path from `top`.

    A folder is walked once: the paths of links to one that was seen before, below `top` or above it, are added to `loops`.
    """
    waiting, seen = [""], set[tuple[int, int]]()
    while waiting:
        below = waiting.pop()
        folder = top / below
        try:
            seen = seen or set(map(_inode, _above(top)))
            if (inode := _inode(folder)) in seen:
                loops.append(below)
                continue
            seen.add(inode)
            folders: list[str] = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = os.path.join(below, entry.name)
                    if entry.name.startswith("."):
                        continue
                    if is_image_name(entry.name) or not is_folder(entry):
                        yield entry, path
                    else:
                        folders.append(path)
            waiting += sorted(folders, reverse=True)  # of two paths to one folder always the same is taken
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be read ({error.strerror}): make it readable or take it away"
            ) from None


def _above(top: Path) -> Iterable[Path]:
    """The folders above `top`, on the way that the user named; of ../photos they are not this folder and those above it."""
    return (top.resolve() if ".." in top.parts else top.absolute()).parents


def _inode(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
