"""Calls that may crash or hang, in a process of their own."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, Self

from pipeline.base.command import describe_user_error
from tests.patience import limit

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Ended:
    """How a call ended: it returned a `value`, was refused with a sentence, raised, was killed by a signal, or hung."""

    how: Literal["returned", "refused", "raised", "signal", "hung"]
    value: Any = None
    said: str = ""  # the sentence, the traceback, or the signal's name


class Isolated:
    """Calls `function`, which a module defines, in another process; a crash or a hang ends that process alone."""

    def __init__(self, function: Callable[..., Any], seconds: float) -> None:
        """seconds: for one call, on a quiet machine; then it counts as hung. The first call may take a minute longer."""
        self.function, self.seconds = function, seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, *arguments: Any) -> Ended:
        if self._process is None:
            self._pipe, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_serve, args=(self.function, theirs), daemon=True)
            self._process.start()
            theirs.close()
            self._ready = False
        with suppress(BrokenPipeError):
            self._pipe.send(arguments)
        try:
            if not self._pipe.poll(limit(self.seconds if self._ready else self.seconds + 60)):
                self._end()
                return Ended("hung")
            self._ready = True
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            self._end()
            return Ended("signal", said=signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            ended = Ended("returned", function(*arguments))
        except Exception as error:
            sentence = describe_user_error(error)
            ended = (
                Ended("raised", said=traceback.format_exc()) if sentence is None else Ended("refused", said=sentence)
            )
        pipe.send(ended)
