"""Standard output and standard error of every process: whatever becomes of them, no print ends the work or changes its result.

A reader that has gone (`| head -1`, a terminal that was closed), a full disk, a closed descriptor: what cannot be written is
dropped, of libraries too. What standard output lost is remembered: a command that keeps nothing but what it prints says so
(pipeline/base/command.py:check_printed). Standard error carries messages, and waits PATIENCE_SECONDS for a reader that does
not read (Ctrl-S, a pager); standard output carries results, and waits for ever. Characters that the encoding does not have,
and those that steer a terminal, are shown escaped; secrets are hidden (pipeline/base/redaction.py).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import sys
import time
from typing import Any, TextIO, cast

from pipeline.base.redaction import redact, without_secrets

PATIENCE_SECONDS = 10.0  # well below a watchdog's time-out: ranks wait for the one that waits for a reader
LAST_WORDS_SECONDS = 1.0  # the same where the process is to end at once
IN, OUT, ERR = 0, 1, 2

_GAP = b"(some lines are missing here: they could not be written)\n"
# As much as a pipe takes without blocking where poll() says that it can be written (PIPE_BUF).
_PIECE = 4096
# All control characters but \n, \t, \r\n and colours (ESC[...m); other ends of lines; what turns the direction of writing.
_STEERING = re.compile(
    r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)"
)
# The same, and what would end a line, have a colour, or be no character at all.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(name: object) -> str:
    """A name from outside as one line shows it: what would steer a terminal, or end the line, is escaped as Python does."""
    return _UNFIT.sub(_escaped, str(name))


def printable(text: str) -> str:
    """A printed text, of several lines perhaps, with what would steer a terminal escaped; colours are left."""
    return _STEERING.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def prepare() -> None:
    """Called first of all in every process, before the imports that may keep sys.stdout or sys.stderr; again changes nothing.

    Descriptors 0, 1 and 2 that are closed are opened at /dev/null: the next file would get their numbers, and in it would land
    what a library prints.
    """
    opened = [number for number in (IN, OUT, ERR) if _open_if_closed(number)]
    if sys.stdin is None:
        sys.stdin = open(IN, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _kept(sys.stdout, OUT, OUT in opened)
    sys.stderr = _kept(sys.stderr, ERR, ERR in opened, PATIENCE_SECONDS)


def lost() -> OSError | None:
    """Why something on standard output could not be written; None where everything was."""
    sys.stdout.flush()
    raw = getattr(sys.stdout, "raw_output", None)
    return raw.lost if isinstance(raw, _Output) else None


def reader_has_gone() -> bool:
    """Whether what reads standard output has ended (`| head -1`): it had what it wanted."""
    error = lost()
    return error is not None and error.errno == errno.EPIPE


def write_now(text: str) -> None:
    """Write to standard error without Python's streams, for a second at most: a signal or a hang ends the process."""
    with contextlib.suppress(OSError):
        _write(ERR, memoryview(text.encode(errors="backslashreplace")), LAST_WORDS_SECONDS)


def is_read() -> bool:
    """Whether standard error takes a few lines more without waiting."""
    return _takes(ERR, 0)


def unescaped(stream: TextIO) -> TextIO:
    """The stream for what steers the terminal on purpose, such as a progress bar; its writer escapes names (`shown`)."""
    return cast(TextIO, _AsItIs(stream)) if isinstance(stream, _Stream) else stream


class Escaping:
    """Another stream, with `printable` of what is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(io.FileIO):
    """A descriptor that takes everything: what cannot be written is dropped, and `lost` says why.

    patience: seconds that the first piece waits for a reader; the next ones do not wait, until something is read. None: as long
    as it takes.
    """

    def __init__(self, descriptor: int, closed: bool, patience: float | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.was_closed, self.patience = closed, patience
        self.lost: OSError | None = None
        self._gap = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            if self.was_closed:
                raise OSError(errno.EBADF, "it is closed")
            patience = 0.0 if self._gap and self.patience is not None else self.patience
            if self._gap:
                _write(self.fileno(), memoryview(_GAP), patience)
                self._gap = False
            _write(self.fileno(), view, patience)
        except OSError as error:
            self.lost, self._gap = error, True
        return len(view)


class _Stream(io.TextIOWrapper):
    """sys.stdout or sys.stderr."""

    def __init__(self, raw: _Output, encoding: str, line_buffering: bool, write_through: bool) -> None:
        self.raw_output = raw
        # Without a BufferedWriter, as `python -u` has it: a signal's handler may print while something is being written.
        buffer = cast(io.BufferedWriter, raw)
        super().__init__(buffer, encoding, "backslashreplace", "\n", line_buffering, write_through)

    def write(self, text: str) -> int:
        super().write(printable(without_secrets(text)))
        return len(text)


class _AsItIs:
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        io.TextIOWrapper.write(self._stream, without_secrets(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _kept(stream: TextIO | None, number: int, closed: bool, patience: float | None = None) -> TextIO:
    """The stream for descriptor `number`; a stream that is not Python's own, such as a test's, stays and shows no secret."""
    if stream is None:
        made = _Output(number, closed, patience)
        return _Stream(made, "utf-8", line_buffering=number == ERR, write_through=False)
    if isinstance(stream, _Stream):
        return stream
    redact(stream)  # also where a library holds it already
    if type(stream) is not io.TextIOWrapper or _number(stream) != number:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    made = _Output(number, closed, patience)
    kept = _Stream(made, stream.encoding, stream.line_buffering, stream.write_through)
    made.name = stream.name
    return kept


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _open_if_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDONLY if number == IN else os.O_WRONLY)
        assert descriptor == number, "the lowest free number, and those below it are open"
        os.set_inheritable(descriptor, True)
        return True
    return False


def _write(descriptor: int, view: memoryview, patience: float | None) -> None:
    """Write all. Raises TimeoutError where nobody reads for `patience` seconds, and OSError."""
    end = None if patience is None else time.monotonic() + patience
    while view:
        if end is not None and not _takes(descriptor, max(0.0, end - time.monotonic())):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
        try:
            written = os.write(descriptor, view if end is None else view[:_PIECE])
        except BlockingIOError:  # another program that shares the terminal has made it so
            _takes(descriptor, None)
            continue
        view = view[written:]


def _takes(descriptor: int, seconds: float | None) -> bool:
    """Wait until something can be written, or will fail to be; False where the time is over."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
