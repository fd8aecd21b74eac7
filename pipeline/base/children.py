"""Processes of this checkout's own beside a run, such as the one that feeds MLflow: they end after the run, when it says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

from pipeline.base.stopping import ASKING, blocked

ROOT = Path(__file__).resolve().parents[2]
FOR_THE_RUN = {*ASKING, signal.SIGQUIT}  # a launcher sends SIGQUIT for a rank's stacks


def start_child(
    command: Sequence[str], *, stdout: int, stderr: int | IO[str], variables: Mapping[str, str] | None = None
) -> Popen[bytes]:
    """Start a process that can import this checkout, with a pipe as standard input. Raises OSError.

    variables: of its environment, beside this process's. Signals that end or pause a job are for the run: they never reach
    this process.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment |= variables or {}
    with blocked(FOR_THE_RUN):
        return Popen(command, stdin=PIPE, stdout=stdout, stderr=stderr, env=environment)


def ask_to_end(process: Popen[bytes]) -> None:
    """Send a word and close the pipe. Closing alone is not enough: a forked sibling may hold the pipe open."""
    assert process.stdin is not None
    with suppress(OSError, ValueError):  # it has ended, or was asked before
        process.stdin.write(b"close\n")
        process.stdin.close()
