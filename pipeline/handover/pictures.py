"""Which pictures a command line means: files, folders, and lists of names on standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.data.folders import PassedOver, pictures_below

STANDARD_INPUT = "-"  # a file of that name is ./-


def pictures_of(words: Sequence[str]) -> tuple[list[Path], tuple[PassedOver, ...]]:
    """The pictures that the words name, in their order, and as often as they are named; and what folders hold beside them.

    A word is a file; a folder, of which all pictures below it are taken, by name (`folders.pictures_below`); or
    STANDARD_INPUT, which names such words. Raises UserError for a folder or an input that names none.
    """
    pictures: list[Path] = []
    passed_over: list[PassedOver] = []
    for word in words:
        for one in map(Path, _words_of(word)):
            found, others = pictures_in(one) if one.is_dir() else ([one], ())
            pictures += found
            passed_over += others
    return pictures, PassedOver.merged(passed_over)


def _words_of(word: str) -> Iterator[str]:
    if word != STANDARD_INPUT:
        yield word
        return
    named = sys.stdin.buffer.read()
    # As `find -print0` writes them, which lets a name hold the end of a line.
    names = named.split(b"\0") if b"\0" in named else named.splitlines()
    if not any(names):
        raise UserError("standard input names no picture: write their names to it, one a line")
    yield from (os.fsdecode(name) for name in names if name)


def pictures_in(folder: Path) -> tuple[list[Path], tuple[PassedOver, ...]]:
    """All pictures below `folder`, by name, and what else is there. Raises UserError where it has none or cannot be read."""
    found, others = pictures_below(folder)
    passed_over = tuple(one.inside(str(folder)) for one in others)
    if not found:
        more = f"; it holds {', '.join(map(str, passed_over))}" if passed_over else ""
        raise UserError(f"there is no picture (.jpg, .png, .webp ...) in the folder {folder}{more}: give another")
    return sorted(folder / path for _, path in found), passed_over
