"""A group of rank processes on this machine that lives and ends together.

Why not torch's elastic agent: it turns every failure into exit code 1 and a table of all ranks, costs an import of torch
(5 s) in the agent before the ranks begin theirs, and leaves its workers running when it is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.ranks.failure import Failure, print_cause
from pipeline.base.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from pipeline.base.layout import CHECKPOINTS
from pipeline.base.stopping import (
    ASKING,
    NOTHING_TO_SAVE,
    Requests,
    blocked,
    ended_at_once,
    exit_code,
    going_on,
    heeded,
    say,
)
from pipeline.process.notes import Note

# The file descriptor, inherited by a rank, that `tell_launcher` writes to; the ranks themselves need not know of it.
REPORT_VARIABLE = "PIPELINE_REPORT_FD"

# Once a rank has failed the others can only fail too: they get time to clean up, then a request to end, then SIGKILL.
REQUEST_AFTER_SECONDS = 5.0
FORCE_AFTER_SECONDS = 10.0
TAIL_BYTES = 4000

_AWAITED = {*ASKING, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT}
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None  # what it wrote before it opened its log; None: it writes to the terminal
    messages: IO[bytes]  # what it told this launcher
    ended_before: int | None  # processes that the kernel had ended for want of memory when this one started

    def failure(self, asked: Collection[signal.Signals]) -> Failure | None:
        """Why the rank ended; None where it ended well: finished, or saved and stopped on request.

        asked: the signals that were passed on to the rank; one may have come before the rank could answer.
        """
        code = self.process.returncode
        if code in (0, EXIT_PREEMPTED, EXIT_INTERRUPTED) or -code in asked:
            return None
        lines = self._lines()
        if failures := [line for line in lines if line.startswith("{")]:
            return Failure.from_json(failures[0])
        reason = f"ended with exit code {code}"
        if code < 0:
            why = self._why_killed() if code == -signal.SIGKILL else ""
            code, reason = 128 - code, f"was killed by {signal.Signals(-code).name}{why}"
        note = Note.read(Path(lines[0])) if lines else None
        if note and note.process == self.process.pid:
            reason += f", its last word: {note}"
        return Failure(rank=self.number, time=time.time(), code=code, sentence=reason, detail=self._tail())

    def _why_killed(self) -> str:
        """What the kernel's count says; where it has none, what may be."""
        now = ended_for_memory()
        if now is None or self.ended_before is None:
            return " (the kernel does that when memory runs out: see dmesg)"
        if now == self.ended_before:
            return ""
        return (
            f", probably because memory ran out: the kernel has ended {now - self.ended_before} for that since this rank "
            "started (give the job more memory, or start fewer processes or loader threads)"
        )

    @property
    def checkpoints(self) -> Path | None:
        """The run's folder of them; None where the rank has not told yet where its notes are."""
        notes = [line for line in self._lines() if not line.startswith("{")]
        return Path(notes[0]).parents[1] / CHECKPOINTS if notes else None

    def _lines(self) -> list[str]:
        self.messages.seek(0)
        return self.messages.read().decode(errors="surrogateescape").splitlines()

    def _tail(self) -> str:
        if self.output is None:
            return ""
        self.output.seek(max(0, self.output.seek(0, os.SEEK_END) - TAIL_BYTES))
        return self.output.read().decode(errors="replace")


def supervise(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
    """Run one process per command, rank 0 on this terminal, until all have ended; print the cause of a failure.

    Signals that ask to stop are passed on to every rank, once, and rank 0 says what it does; a second Ctrl-C kills. When one
    rank fails the others are stopped. When this process dies, in whatever way, the kernel kills every rank.

    Returns 0, EXIT_PREEMPTED or EXIT_INTERRUPTED (saved and stopped, as the request asked), or the exit code of the rank that
    failed first (128 + N for signal N).
    Raises UserError where that failure was a mistake of the user.
    """
    ranks: list[_Rank] = []
    requests = Requests()
    with blocked(_AWAITED):
        try:
            for number, (command, environment) in enumerate(zip(commands, environments, strict=True)):
                ranks.append(_start(number, command, environment))
            failures = _wait(ranks, requests)
        finally:
            for rank in ranks:
                if rank.process.poll() is None:
                    os.killpg(rank.process.pid, signal.SIGKILL)
                    rank.process.wait()
            while signal.sigtimedwait(
                ASKING, 0
            ):  # came when all had ended: it must not end this process in other words
                pass
    if requests.ended:
        say(ended_at_once(ranks[0].checkpoints))
        return EXIT_INTERRUPTED
    if failures:
        return print_cause(failures)
    codes = {rank.process.returncode for rank in ranks} - {0}
    if requests.first is None or not codes:
        return max(codes, default=0)
    if ranks[0].process.returncode < 0:  # before it could speak
        say(going_on(NOTHING_TO_SAVE))
    return exit_code(requests.first)


def ended_for_memory() -> int | None:
    """How many processes this machine's kernel has ended since its start because memory ran out, its own or a container's.

    None where the kernel does not say.
    """
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def tell_launcher(failure: Failure) -> None:
    """Called in a rank: say why this rank ends; its connections to the other ranks close when its process ends."""
    _write_message(failure.to_json())


def tell_launcher_of_notes(path: Path) -> None:
    """Called in a rank first of all: where its `Note` will be, to be read if the rank dies without a word."""
    _write_message(str(path.absolute()))


def _write_message(line: str) -> None:
    if descriptor := os.environ.get(REPORT_VARIABLE):
        with suppress(OSError):  # the disk of TMPDIR is full
            os.write(int(descriptor), f"{line}\n".encode(errors="surrogateescape"))


def _start(number: int, command: Sequence[str], environment: Mapping[str, str]) -> _Rank:
    launcher = os.getpid()

    def become_rank() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # the launcher died between the fork and the line above
            os._exit(EXIT_INTERRUPTED)
        # Ctrl-C waits until the rank has its handler (`end_on_request`): Python's own would print a traceback.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED - {signal.SIGINT})
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # for programs that do not show their stacks on SIGQUIT

    ended_before = ended_for_memory()
    output = None if number == 0 else tempfile.TemporaryFile()  # noqa: SIM115
    messages = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        command,
        env={**environment, REPORT_VARIABLE: str(messages.fileno())},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(messages.fileno(),),
        process_group=0,  # a new one: the terminal's Ctrl-C reaches the launcher alone, which passes it on once
        preexec_fn=become_rank,
    )
    return _Rank(number, process, output, messages, ended_before)


def _wait(ranks: Sequence[_Rank], requests: Requests) -> list[Failure]:
    """Wait for every rank to end. Returns the failures in the order they were seen."""
    running = list(ranks)
    failures: list[Failure] = []
    asking = heeded()
    request_at = force_at = float("inf")
    while running:
        now = time.monotonic()
        if now >= force_at:
            _signal(running, signal.SIGKILL)
            force_at = float("inf")
        elif now >= request_at:
            # SIGQUIT writes the stacks of a rank's threads into its log. SIGCONT wakes a stopped rank, which could do
            # neither otherwise.
            for last in (signal.SIGQUIT, signal.SIGTERM, signal.SIGCONT):
                _signal(running, last)
            request_at = float("inf")
        received = signal.sigtimedwait(_AWAITED, min(1.0, max(0.0, min(request_at, force_at) - now)))
        if received is not None and received.si_signo in asking:
            number = signal.Signals(received.si_signo)
            if (meaning := requests.take(number)) != "same":
                _signal(running, signal.SIGKILL if meaning == "end" else number)
        elif received is not None and received.si_signo == signal.SIGTSTP:
            # Ctrl-Z: the ranks stop with the launcher, and go on with it.
            _signal(running, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            _signal(running, signal.SIGCONT)
        for rank in [rank for rank in running if rank.process.poll() is not None]:
            running.remove(rank)
            if not requests.ended and (failure := rank.failure(requests.signals)):
                if not failures:
                    request_at = time.monotonic() + REQUEST_AFTER_SECONDS
                    force_at = time.monotonic() + FORCE_AFTER_SECONDS
                # The ends that this launcher itself brings about say nothing about the cause.
                if request_at < float("inf") or not failures:
                    failures.append(failure)
    return failures


def _signal(ranks: Sequence[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            os.killpg(rank.process.pid, number)
