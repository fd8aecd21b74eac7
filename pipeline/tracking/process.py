"""The run's side of the feeder process (feeder.py): starts it, prints its messages, and ends it in bounded time."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import IO

from pipeline.base.children import ask_to_end, start_child
from pipeline.base.layout import FEEDER_LOG, METRICS, MLFLOW_STORE
from pipeline.tracking.environment import URI_VARIABLE
from pipeline.tracking.journal import unsent_lines as lines_behind
from pipeline.tracking.state import Delivered, Wanted
from pipeline.tracking.store import store_of

REST_FOLLOWS = "MLflow gets the rest when the run goes on"
STARTS = 3  # per attempt, if something kills the feeder


class FeederProcess:
    """Feeds MLflow from the run in `folder` while this process runs, and for `close_seconds` more if it is killed."""

    def __init__(self, folder: Path, close_seconds: float, uri: str | None = None) -> None:
        self.folder, self.close_seconds, self.uri = folder.resolve(), close_seconds, uri
        self.process: Popen[bytes] | None = None
        self.starts = 0
        self.ensure()

    def ensure(self) -> None:
        """Start the feeder if it is not running (any more)."""
        if (self.process is None or self.process.poll() is not None) and self.starts < STARTS:
            self.starts += 1
            try:
                self._start()
            except OSError as error:
                print(f"MLflow gets no metrics during this run ({error}); they are kept", file=sys.stderr)
                self.starts = STARTS

    def close(self, seconds: float, *, goes_on: bool = False) -> None:
        """Wait, at most `seconds`, until MLflow has everything; print what it lacks.

        goes_on: the run was asked to stop, so that MLflow's lack is no news: its next start delivers the rest.
        """
        self.drain(seconds)
        if left := what_is_left(self.folder, self.uri):
            print(REST_FOLLOWS if goes_on else left, file=sys.stderr)

    def drain(self, seconds: float, waiting: Callable[[], None] = lambda: None) -> None:
        """Wait, at most `seconds`, until MLflow has everything and the feeder ends; call `waiting` every 0.2 s."""
        self.ensure()
        if self.process is None:
            return
        deadline = time.monotonic() + seconds
        try:
            ask_to_end(self.process)
            while self.process.poll() is None and time.monotonic() < deadline:
                waiting()
                with suppress(TimeoutExpired):
                    self.process.wait(0.2)
        finally:
            self.process.kill()
            self.process.wait()
            for unfinished in self.folder.parent.glob(f".{MLFLOW_STORE}.{self.process.pid}.*"):  # by `make_store`
                shutil.rmtree(unfinished, ignore_errors=True)
            self.reader.join(timeout=1.0)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "pipeline.tracking.feeder"]
        command += [str(self.folder), str(self.close_seconds), str(os.getpid())]
        given = {URI_VARIABLE: self.uri} if self.uri else {}
        with open_log(self.folder) as errors:
            self.process = start_child(command, stdout=PIPE, stderr=errors, variables=given)
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=_pass_on, args=(self.process.stdout,), daemon=True)
        self.reader.start()


def open_log(folder: Path) -> IO[str]:
    """Open the log of the run's feeder to append to it. Its owner alone can read it: libraries print into it, too."""
    path = folder / FEEDER_LOG
    path.parent.mkdir(exist_ok=True)
    log = open(path, "a", encoding="utf-8", buffering=1, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    with suppress(OSError):  # of another user
        os.fchmod(log.fileno(), 0o600)
    return log


def _pass_on(stream: IO[bytes]) -> None:
    for line in stream:
        print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)


def what_is_left(folder: Path, uri: str | None = None) -> str:
    """Return one sentence on what MLflow lacks of the run in `folder`, with the remedy; empty if it has everything."""
    wanted = Wanted.read(folder)
    if wanted is None:
        return ""
    place = store_of(folder, uri or wanted.uri).name
    if not (missing := left_at(folder, place)):
        return ""
    delivered = Delivered.read(folder, place)
    reason = f" ({delivered.error})" if delivered.error else ""
    return (
        f"MLflow at {place} has not taken {', '.join(missing)} of run {wanted.name}{reason}: the run's next start delivers "
        f"them, or python -m pipeline.tracking sync {shlex.quote(os.path.relpath(folder))}"
    )


def left_at(folder: Path, place: str) -> list[str]:
    """Return what the MLflow at `place` lacks of the run in `folder`, in words."""
    wanted, delivered = Wanted.read(folder), Delivered.read(folder, place)
    if wanted is None:
        return []
    missing = []
    if lines := unsent_lines(folder, delivered):
        missing.append(f"{lines:,} lines of {METRICS}")
    if files := len(delivered.unsent(wanted.files(folder))):
        missing.append(f"{files} files" if files > 1 else "a file")
    if not delivered.has_model(folder):
        missing.append("the model")
    if wanted.status not in (delivered.status, "RUNNING"):
        missing.append(f"the status {wanted.status}")
    return missing


def unsent_lines(folder: Path, delivered: Delivered) -> int:
    path = folder / METRICS
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        return sum(len(lines) for lines, _ in lines_behind(file, delivered.position))
