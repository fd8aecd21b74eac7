"""metrics.jsonl: the metrics of one run, append-only, one JSON object per line. MLflow and all tables derive from this file.

    {"kind": "val", "iteration": 5000, "time": 1764000000000, "top1_error": 41.2, "top5_error": 18.0}

`time` is in milliseconds since 1970. Numbers that JSON cannot express are the strings NaN, Infinity and -Infinity.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.base.command import UserError
from pipeline.base.files import sync_folder
from pipeline.base.json_text import parse_json

TAIL_BYTES = 1 << 14  # holds a few lines
BYTES_PER_BATCH = 1 << 16  # a few hundred lines; at most so much is sent again after a crash
RESERVED = ("kind", "iteration", "time")


@dataclass(frozen=True)
class Record:
    """One line: the metrics `values` of `kind` (train, val ...) after `iteration` updates, logged at `time` (ms since 1970)."""

    kind: str
    iteration: int
    time: int
    values: dict[str, float]

    def to_line(self) -> bytes:
        line: dict[str, Any] = {"kind": self.kind, "iteration": self.iteration, "time": self.time}
        line |= {name: value if math.isfinite(value) else json.dumps(value) for name, value in self.values.items()}
        return json.dumps(line, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """Parse a line. Raises ValueError if the line is not a record."""
        try:
            values = parse_json(line)
            kind, iteration, moment = (values.pop(name) for name in RESERVED)
            return cls(str(kind), int(iteration), int(moment), {name: float(value) for name, value in values.items()})
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a metrics record: {error}") from None


class Journal:
    """The writer of metrics.jsonl, which continues an existing file. It is thread-safe: training logs, a checkpoint syncs.

    With `repair`, a torn last line is removed first; turn `repair` off where a running training may be writing that line.
    Raises UserError if another line is damaged, or there is something else than a file.
    """

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        self.path = path
        self.pending: list[bytes] = []  # lines that the disk has refused so far
        self._writing = threading.Lock()
        self._entered = False  # whether the file's entry in its folder is on the disk
        content = _content(path)
        records, sound = _parse(path, content)
        self.descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if repair and sound < len(content):
            os.ftruncate(self.descriptor, sound)
        self.recorded = {(record.kind, record.iteration): record.values for record in records}

    def append(self, kind: str, iteration: int, values: Mapping[str, float], *, revise: bool = False) -> bool:
        """Append one record; return False if this kind and iteration is recorded already.

        A run that continues from a checkpoint repeats the records that it had logged after it; the first ones stand. With
        `revise`, values that differ from the recorded ones are appended: readers take the last.
        """
        assert not set(RESERVED) & set(values), f"a metric must not be named {', '.join(RESERVED)}"
        known = self.recorded.get((kind, iteration))
        fresh = {name: float(value) for name, value in values.items()}
        if known is not None and not (revise and repr(known) != repr(fresh)):
            return False
        self.recorded[kind, iteration] = fresh
        try:
            self._write(Record(kind, int(iteration), time.time_ns() // 1_000_000, fresh).to_line())
        except OSError as error:
            if len(self.pending) == 1:
                print(f"{self.path} cannot be written ({error.strerror}): metrics wait in memory", file=sys.stderr)
        return True

    def fsync(self) -> None:
        """Put every record on the disk; raises OSError if the disk refuses.

        Call this before a checkpoint is published: updates before a checkpoint are never computed again, so their metrics
        must survive whatever the checkpoint survives.
        """
        self._write()
        os.fsync(self.descriptor)
        if not self._entered:
            sync_folder(self.path.parent)
            self._entered = True

    def close(self) -> None:
        """Write the pending lines and close the file. Raises OSError if the disk still refuses them."""
        try:
            self._write()
        finally:
            os.close(self.descriptor)

    def _write(self, *lines: bytes) -> None:
        """Write the pending lines, then `lines`, each whole or not at all."""
        with self._writing:
            self.pending += lines
            while self.pending:
                line, size = self.pending[0], os.fstat(self.descriptor).st_size
                try:
                    written = os.write(self.descriptor, line)
                    if written < len(line):  # the disk filled up within the line; the next write raises the error
                        os.write(self.descriptor, line[written:])
                except OSError:
                    os.ftruncate(self.descriptor, size)
                    raise
                self.pending.pop(0)


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics.jsonl, which may be growing; [] if there is no such file.

    For each kind and iteration the last record counts; records are in the order of their first writing. Raises UserError
    if a line is damaged, or there is something else than a file.
    """
    return list({(record.kind, record.iteration): record for record in _parse(path, _content(path))[0]}.values())


def last_iteration(path: Path) -> int:
    """The iteration of the newest whole line of a metrics.jsonl; 0 where there is none. Reads the file's end alone."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = complete_lines(file.read())
        return Record.from_line(lines[-1]).iteration if lines else 0
    except (OSError, ValueError):
        return 0


def complete_lines(content: bytes) -> list[bytes]:
    """The lines of `content` with their line ends; a last line without a line end is left out."""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def unsent_lines(file: BinaryIO, sent: int) -> Iterator[tuple[list[bytes], int]]:
    """Yield the complete lines behind the first `sent` bytes of a file, in batches, each with the position after it.

    Where no line of the file ends at `sent`, it has been replaced: all lines from where the file stands come again, since
    MLflow stores nothing twice.
    """
    start = file.tell()
    position = sent if start < sent and _ends_a_line(file, sent) else start
    while True:
        file.seek(position)  # a last line that was torn may be whole by now
        lines = complete_lines(b"".join(file.readlines(BYTES_PER_BATCH)))
        if not lines:
            return
        position += sum(map(len, lines))
        yield lines, position


def _ends_a_line(file: BinaryIO, position: int) -> bool:
    if position > os.fstat(file.fileno()).st_size:
        return False
    file.seek(position - 1)
    return file.read(1) == b"\n"


def _content(path: Path) -> bytes:
    if not os.path.lexists(path):
        return b""
    if not path.is_file():
        raise UserError(f"{path} is not a file: move it away, or choose another run folder")
    return path.read_bytes()


def _parse(path: Path, content: bytes) -> tuple[list[Record], int]:
    """Return the records and the number of bytes that they occupy from the start; at most one torn line follows them."""
    records: list[Record] = []
    sound = 0
    for number, line in enumerate(complete_lines(content), start=1):
        try:
            records.append(Record.from_line(line))
        except ValueError:
            raise UserError(
                f"line {number} of {path} is not a metrics record (was the file edited?): repair or remove that line"
            ) from None
        sound += len(line)
    return records, sound
