"""Commands on a terminal of their own (a pty), as a person runs them: what they say, when, and what Ctrl-C does."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.patience import limit

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command on a terminal. text: what it has printed so far, without colours and cursor movements.

    A context manager: at its end nothing of the command's session is left.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        self.text, self._raw = "", b""
        self.code: int | None = None
        self.ended: float | None = None
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], list(command), dict(environment))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def expect(self, pattern: str, seconds: float = 60, since: int = 0) -> float:
        """Read until `pattern` has been printed behind position `since` of the text; the seconds that took."""
        began = time.monotonic()
        while not re.search(pattern, self.text[since:]):
            assert time.monotonic() - began < limit(seconds), f"no {pattern!r} in:\n{self.text}"
            assert self._read(0.1) or not self._over(), f"it ended with {self.code} without {pattern!r}:\n{self.text}"
        return time.monotonic() - began

    def reading(self) -> bool:
        """Read what there is, so that the command can go on writing; True."""
        self._read(0.0)
        return True

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed does."""
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def finish(self, seconds: float = 120) -> int:
        """Read to the end; the exit code (128 + N where signal N ended it)."""
        end = time.monotonic() + limit(seconds)
        while not self._over():
            assert time.monotonic() < end, f"it still runs:\n{self.text}"
            self._read(0.1)
        while self._terminal >= 0 and self._read(0.2):
            pass
        assert self.code is not None
        return self.code

    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]

    def _over(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.code, self.ended = (code if code >= 0 else 128 - code), time.monotonic()
        return self.code is not None

    def _read(self, seconds: float) -> bool:
        if self._terminal < 0 or not select.select([self._terminal], [], [], seconds)[0]:
            time.sleep(0 if self._terminal >= 0 else seconds)
            return False
        try:
            read = os.read(self._terminal, 1 << 16)
        except OSError:  # nobody has it open any more
            return False
        self._raw += read
        self.text = ESCAPES.sub("", self._raw.decode(errors="replace"))  # of the whole: a read may end within an escape
        return bool(read)


def seen_on_a_terminal(code: str, columns: int) -> str:
    """What a person sees of a Python program on a terminal of that width."""
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with Terminal([sys.executable, "-c", code], Path.cwd(), environment) as terminal:
        assert terminal.finish() == 0, terminal.text
        return terminal.text
