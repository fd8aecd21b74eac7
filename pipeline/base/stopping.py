"""A request to stop: which signals ask for it, with which exit code the process ends that was asked, and what people read.

Ctrl-C, a scheduler's signal and a closed terminal (SIGHUP) ask for the same: save, then end. A second Ctrl-C ends at once.
Imports the standard library alone, so that a program can call `end_on_request` before its slow imports.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from pipeline.base.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from pipeline.base.layout import newest_checkpoint
from pipeline.base.output import write_now
from pipeline.base.redaction import without_secrets

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# One Ctrl-C may come twice: the terminal sends it to every process in its foreground, and a parent passes it on as well.
SAME_REQUEST_SECONDS = 0.5
# The command that a person typed, for the processes that it starts; the run's description in MLflow shows it.
COMMAND_VARIABLE = "PIPELINE_COMMAND"
SAVING, KEEPING_SCORES = "saving at the next iteration", "keeping the scores so far"
TO_GO_ON = "; to go on: "
# Set where a launcher says that the ranks stop: they need not.
ANNOUNCED_VARIABLE = "PIPELINE_LAUNCHER_ANNOUNCES"
NOTHING_TO_SAVE = "stopped: nothing had to be saved yet"
LOOK_SECONDS = 0.05


def exit_code(number: int) -> int:
    """What a process ends with that signal `number` asked to stop, once it has saved."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


def heeded() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop: not those that nohup, or a shell for its background, lets it ignore."""
    return tuple(number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN)


class Requests:
    """The requests that a process has had.

    first: the signal that asked first; None before it. signals: all that asked. ended: by a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.signals: set[signal.Signals] = set()
        self.ended = False
        self._interrupts, self._last = 0, float("-inf")

    def note(self, number: int) -> None:
        """Note who asked first, without counting."""
        self.first = self.first or signal.Signals(number)
        self.signals.add(signal.Signals(number))

    def take(self, number: int) -> Literal["ask", "end", "same"]:
        """Count a request. "ask": to save and to stop; "end": at once, a second Ctrl-C; "same": the one before, once more."""
        self.note(number)
        if number != signal.SIGINT:
            return "ask"
        now = time.monotonic()
        same, self._last = now - self._last <= SAME_REQUEST_SECONDS, now
        if same:
            return "same"
        self._interrupts += 1
        self.ended = self._interrupts > 1
        return "end" if self.ended else "ask"


def announcement(number: int, saving: str) -> str:
    """What is said as soon as signal `number` has come. saving: such as "saving at the next iteration"."""
    if number == signal.SIGINT:
        return f"stopping: {saving}; Ctrl-C again ends without saving"
    return f"stopping: {saving} ({signal.Signals(number).name})"


def going_on(what: str) -> str:
    """The last line of a command that stopped before its end: `what` was saved, and the command that goes on."""
    return f"{what}{TO_GO_ON}{typed_command()}"


def ended_at_once(checkpoints: Path | None) -> str:
    """The last line after a second Ctrl-C. checkpoints: the run's folder of them; None where it is not known yet."""
    newest = newest_checkpoint(checkpoints) if checkpoints else None
    if newest is None:
        return going_on("ended at once: there is no checkpoint")
    return going_on(f"ended at once: the newest checkpoint is of iteration {newest[0]:,} ({newest[1]})")


def typed_command() -> str:
    """The command as a person typed it, also in the processes that it started; without secrets."""
    if given := os.environ.get(COMMAND_VARIABLE):
        return without_secrets(given)
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this process
        with contextlib.suppress(OSError):
            words = os.fsdecode(Path(f"/proc/{os.getppid()}/cmdline").read_bytes()).rstrip("\0").split("\0")
    return without_secrets(shlex.join(words))


def speaks() -> bool:
    """Whether this process speaks for its job: rank 0 does, and what is no rank."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on standard error, if this process speaks for its job."""
    if speaks():
        print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class EndAtOnce:
    """A handler of signals: `end_now`."""

    sentence: str

    def __call__(self, number: int, frame: FrameType | None) -> None:
        end_now(number, self.sentence)


def end_on_request(numbers: Iterable[signal.Signals] | None = None, sentence: str = "") -> None:
    """From now on a request ends this process at once: nothing has to be saved yet.

    numbers: the signals that ask; by default `heeded`, of which a launcher may have blocked some until here: they come
    through now. sentence: the last line, instead of NOTHING_TO_SAVE and the command that goes on.
    """
    for number in heeded() if numbers is None else numbers:
        signal.signal(number, EndAtOnce(sentence))
    if numbers is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def end_now(number: int, sentence: str = "") -> NoReturn:
    """End this process as signal `number` asks: not by an exception, which an import or native code might swallow."""
    if speaks():
        write_now(f"{sentence or going_on(NOTHING_TO_SAVE)}\n")
    os._exit(exit_code(number))


@contextlib.contextmanager
def blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Signals that come in the block arrive behind it. A process that is started in the block gets them once it unblocks them.

    So no signal meets such a process between its first instruction and its first handler.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def children_of_the_launcher() -> Iterator[None]:
    """Processes that are started in the block neither hear the terminal nor speak to it of a request: this one passes it on."""
    with blocked({signal.SIGINT, signal.SIGHUP}):
        os.environ[ANNOUNCED_VARIABLE] = "1"
        try:
            yield
        finally:
            del os.environ[ANNOUNCED_VARIABLE]
