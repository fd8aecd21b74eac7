"""The note of each rank: what it does now, and where the other ranks find that.

Until the run folder is open, notes lie in the store where the ranks have met; from then on in files of the run folder,
which can be read when a rank, or the one that holds the store, no longer answers.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.base.json_text import parse_json
from pipeline.base.regular import read_regular

if TYPE_CHECKING:  # launchers read notes without torch
    import torch.distributed as dist

_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str}  # the types of a note's values


@dataclass(frozen=True, kw_only=True)
class Note:
    """The latest note of a rank. `beat` counts the writes, `position` the notes (alike on every rank).

    `standing`: seconds without a new note. `time`: of the writing, Unix seconds by that host's clock.
    """

    rank: int
    beat: int
    position: int
    iteration: int
    activity: str
    standing: float
    time: float
    host: str
    process: int

    def __str__(self) -> str:
        return f"iteration {self.iteration:,}, {self.activity}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """None where the text is no note: a file that is being written, or damaged."""
        try:
            note = cls(**parse_json(text))
        except (ValueError, TypeError):
            return None
        typed = all(isinstance(getattr(note, one.name), _KINDS[str(one.type)]) for one in fields(cls))
        return note if typed else None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the note in the file; None if there is no file or it is being written."""
        try:
            return cls.from_json(read_regular(path).decode())
        except (OSError, ValueError):
            return None


class Board(Protocol):
    """Where ranks leave their notes. What a method does may take for ever where storage or network do not answer."""

    size: int

    def write(self, note: Note) -> None:
        """Replace the note of its rank."""

    def read(self, rank: int) -> Note | None:
        """The latest note of a rank; None where it has left none."""


class FileBoard:
    """Notes in files, one for each rank."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.size = paths, len(paths)

    def write(self, note: Note) -> None:
        """Overwrite the file in place, padded, so that it always exists. A reader that finds no JSON tries again."""
        with open(os.open(self.paths[note.rank], os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.write(note.to_json().ljust(400).encode() + b"\n")

    def read(self, rank: int) -> Note | None:
        for _ in range(3):
            if (note := Note.read(self.paths[rank])) is not None:
                return note
            time.sleep(0.02)
        return None


class StoreBoard:
    """Notes in a store of torch. It must be this board's alone: a call that waits in a store holds up all other callers."""

    def __init__(self, store: dist.Store, size: int) -> None:
        self.store, self.size = store, size

    def write(self, note: Note) -> None:
        self.store.set(f"note of {note.rank}", note.to_json())

    def read(self, rank: int) -> Note | None:
        key = f"note of {rank}"
        return Note.from_json(self.store.get(key).decode()) if self.store.check([key]) else None
