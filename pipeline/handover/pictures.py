"""Which pictures a command line means: files, folders, and lists of names on standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.data.pictures import SUFFIXES

STANDARD_INPUT = "-"  # a file of that name is ./-


def pictures_of(words: Sequence[str]) -> list[Path]:
    """The pictures that the words name, in their order, and as often as they are named.

    A word is a file; a folder, of which all pictures below it are taken, by name; or STANDARD_INPUT, which names such
    words. Raises UserError for a folder or an input that names none.
    """
    return [picture for word in words for one in _words_of(word) for picture in pictures_in(Path(one))]


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


def pictures_in(place: Path) -> list[Path]:
    """`place` itself; or where it is a folder, all pictures below it, by name. Raises UserError where it has none."""
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(f"there is no picture (.jpg, .png, .webp ...) in the folder {place}: give another")
    return found
