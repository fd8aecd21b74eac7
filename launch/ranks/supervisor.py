"""A group of rank processes on this machine that lives and ends together.

Why not torch's elastic agent: it turns every failure into exit code 1 and a table of all ranks, costs an import of torch
(5 s) in the agent before the ranks begin theirs, and leaves its workers running when it is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.ranks.failure import Failure, print_cause
from pipeline.base.exits import EXIT_INTERRUPTED, EXIT_PREEMPTED
from pipeline.process.watchdog import Note

# The file descriptor, inherited by a rank, that `tell_launcher` writes to; the ranks themselves need not know of it.
REPORT_VARIABLE = "PIPELINE_REPORT_FD"

# Once a rank has failed the others can only fail too: they get time to clean up, then a request to end, then SIGKILL.
REQUEST_AFTER_SECONDS = 5.0
FORCE_AFTER_SECONDS = 10.0
TAIL_BYTES = 4000

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_AWAITED = {*PASSED_ON, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT}
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None  # what it wrote before it opened its log; None: it writes to the terminal
    messages: IO[bytes]  # what it told this launcher

    def failure(self) -> Failure | None:
        """Why the rank ended; None where it ended well (finished, or saved and stopped on request)."""
        code = self.process.returncode
        if code in (0, EXIT_PREEMPTED):
            return None
        self.messages.seek(0)
        lines = self.messages.read().decode().splitlines()
        if failures := [line for line in lines if line.startswith("{")]:
            return Failure.from_json(failures[0])
        reason = f"ended with exit code {code}"
        if code < 0:
            memory = " (the kernel does that when memory runs out: see dmesg)" if code == -signal.SIGKILL else ""
            code, reason = 128 - code, f"was killed by {signal.Signals(-code).name}{memory}"
        note = Note.read(Path(lines[0])) if lines else None
        if note and note.process == self.process.pid:
            reason += f", its last word: {note}"
        return Failure(rank=self.number, time=time.time(), code=code, sentence=reason, detail=self._tail())

    def _tail(self) -> str:
        if self.output is None:
            return ""
        self.output.seek(max(0, self.output.seek(0, os.SEEK_END) - TAIL_BYTES))
        return self.output.read().decode(errors="replace")


def supervise(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
    """Run one process per command, rank 0 on this terminal, until all have ended; print the cause of a failure.

    Signals that ask to end, save or interrupt are passed on to every rank, once; a second Ctrl-C kills. When one rank fails
    the others are stopped. When this process dies, in whatever way, the kernel kills every rank.

    Returns 0, EXIT_PREEMPTED, EXIT_INTERRUPTED, or the exit code of the rank that failed first (128 + N for signal N).
    Raises UserError where that failure was a mistake of the user.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    ranks: list[_Rank] = []
    try:
        for number, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            ranks.append(_start(number, command, environment))
        failures, interrupted = _wait(ranks)
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                os.killpg(rank.process.pid, signal.SIGKILL)
                rank.process.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if failures and not interrupted:
        return print_cause(failures)
    if interrupted and any(rank.process.returncode for rank in ranks):
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_PREEMPTED if any(rank.process.returncode == EXIT_PREEMPTED for rank in ranks) else 0


def tell_launcher(failure: Failure) -> None:
    """Called in a rank: say why this rank ends; its connections to the other ranks close when its process ends."""
    _write_message(failure.to_json())


def tell_launcher_of_notes(path: Path) -> None:
    """Called in a rank first of all: where its `Note` will be, to be read if the rank dies without a word."""
    _write_message(str(path.absolute()))


def _write_message(line: str) -> None:
    if descriptor := os.environ.get(REPORT_VARIABLE):
        os.write(int(descriptor), f"{line}\n".encode())


def _start(number: int, command: Sequence[str], environment: Mapping[str, str]) -> _Rank:
    launcher = os.getpid()

    def become_rank() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # the launcher died between the fork and the line above
            os._exit(EXIT_INTERRUPTED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # for programs that do not show their stacks on SIGQUIT

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
    return _Rank(number, process, output, messages)


def _wait(ranks: Sequence[_Rank]) -> tuple[list[Failure], bool]:
    """Wait for every rank to end. Returns the failures in the order they were seen, and whether Ctrl-C was pressed."""
    running = list(ranks)
    failures: list[Failure] = []
    interrupts = 0
    request_at = force_at = float("inf")
    while running:
        now = time.monotonic()
        if now >= force_at:
            _signal(running, signal.SIGKILL)
            force_at = float("inf")
        elif now >= request_at:
            # SIGQUIT writes the stacks of a rank's threads into its log. SIGCONT wakes a stopped rank, which could do
            # neither otherwise.
            for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGCONT):
                _signal(running, number)
            request_at = float("inf")
        received = signal.sigtimedwait(_AWAITED, min(1.0, max(0.0, min(request_at, force_at) - now)))
        if received is not None and received.si_signo in PASSED_ON:
            interrupts += received.si_signo == signal.SIGINT
            _signal(running, signal.SIGKILL if interrupts > 1 else signal.Signals(received.si_signo))
        elif received is not None and received.si_signo == signal.SIGTSTP:
            # Ctrl-Z: the ranks stop with the launcher, and go on with it.
            _signal(running, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            _signal(running, signal.SIGCONT)
        for rank in [rank for rank in running if rank.process.poll() is not None]:
            running.remove(rank)
            if failure := rank.failure():
                if not failures:
                    request_at = time.monotonic() + REQUEST_AFTER_SECONDS
                    force_at = time.monotonic() + FORCE_AFTER_SECONDS
                # The ends that this launcher itself brings about say nothing about the cause.
                if request_at < float("inf") or not failures:
                    failures.append(failure)
    return failures, interrupts > 0


def _signal(ranks: Sequence[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            os.killpg(rank.process.pid, number)
