"""The process group: causes, exit codes, signals, and that nothing survives it. Real processes throughout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# supervise() for small Python programs, one per rank, given on the command line; no torch anywhere.
LAUNCHER = """
import os, sys
from launch.supervisor import supervise
from pipeline import command
programs = sys.argv[1:]
commands = [[sys.executable, "-c", program] for program in programs]
environments = [{**os.environ, "RANK": str(rank)} for rank in range(len(programs))]
command.run(lambda: supervise(commands, environments))
"""

RANK = """
import os, signal, sys, time
from pathlib import Path
from launch.failure import attempt
from launch.supervisor import report
from pipeline.command import UserError
rank = int(os.environ["RANK"])
def main():
{body}
code, failure = attempt(rank, main)
if failure:
    report(failure)
sys.exit(code)
"""


def rank(*lines: str) -> str:
    return RANK.format(body="".join(f"    {line}\n" for line in lines))


def start(*programs: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *programs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 30) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def pids(folder: Path, count: int) -> list[int]:
    """The process ids that the ranks wrote down."""
    wait_for(lambda: len([one for one in folder.iterdir() if one.stat().st_size]) == count)
    return [int(one.read_text()) for one in sorted(folder.iterdir())]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def note_pid(folder: Path) -> str:
    return f"Path({str(folder)!r}, str(rank)).write_text(str(os.getpid()))"


def test_all_ranks_succeed_and_only_rank_0_speaks() -> None:
    program = rank("print('I am rank', rank)", "return 0")
    assert finish(start(program, program, program)) == (0, "I am rank 0\n", "")


def test_first_failing_rank_is_named_not_its_victims() -> None:
    # Rank 0 is reaped first, but fails later than rank 1, which lingers in its own clean-up.
    victim = rank("time.sleep(3.0)", "raise RuntimeError('connection reset by peer')")
    culprit = rank("import atexit; atexit.register(time.sleep, 5.0)", "raise ValueError('image 7 is broken')")
    code, _, err = finish(start(victim, culprit))
    assert code == 1
    assert "rank 1 failed first: ValueError: image 7 is broken" in err
    assert "connection reset" not in err


def test_killed_rank_is_the_cause() -> None:
    # The victim notes its failure before the launcher can have seen the kill.
    victim = rank("time.sleep(0.5)", "raise RuntimeError('connection reset by peer')")
    culprit = rank("time.sleep(0.7)", "os.kill(os.getpid(), signal.SIGKILL)")
    code, _, err = finish(start(victim, culprit))
    assert code == 128 + signal.SIGKILL
    assert "rank 1 failed first: was killed by SIGKILL" in err
    assert "connection reset" not in err


def test_user_error_is_one_sentence_once() -> None:
    program = rank("raise UserError('there is no folder here: make one')")
    code, out, err = finish(start(program, program, program))
    assert (code, out, err) == (2, "", "error: there is no folder here: make one\n")


def test_failure_without_report_shows_the_output() -> None:
    code, _, err = finish(start("import time; time.sleep(1)", "print('half a word'); raise SystemExit(9)"))
    assert code == 9
    assert "half a word" in err and "rank 1 failed first: ended with exit code 9" in err


def test_ranks_that_hang_after_a_failure_are_stopped() -> None:
    hang = rank("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "time.sleep(600)")
    started = time.monotonic()
    code, _, err = finish(start(hang, rank("raise ValueError('no')")))
    assert code == 1 and "rank 1 failed first" in err
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1])
def test_stop_request_reaches_every_rank_once(tmp_path: Path, number: signal.Signals) -> None:
    counting = rank(
        "seen = []",
        f"signal.signal({int(number)}, lambda *_: seen.append(1))",
        note_pid(tmp_path),
        "while not seen: time.sleep(0.02)",
        "time.sleep(0.5)",
        "return 75 if len(seen) == 1 else 99",
    )
    process = start(counting, counting)
    pids(tmp_path, 2)
    process.send_signal(number)
    assert finish(process)[0] == 75


def test_interrupt_is_130_and_one_line(tmp_path: Path) -> None:
    program = rank(note_pid(tmp_path), "time.sleep(600)")
    process = start(program, program)
    children = pids(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    code, _, err = finish(process)
    assert code == 130
    assert err == "interrupted: the same command goes on where this one stopped\n"
    assert not any(alive(pid) for pid in children)


def test_second_interrupt_kills(tmp_path: Path) -> None:
    stubborn = rank("signal.signal(signal.SIGINT, signal.SIG_IGN)", note_pid(tmp_path), "time.sleep(600)")
    process = start(stubborn, stubborn)
    children = pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process, 20)[0] == 130
    assert not any(alive(pid) for pid in children)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_no_orphan_when_the_launcher_dies(tmp_path: Path, number: signal.Signals) -> None:
    deaf = rank(
        "for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(one, signal.SIG_IGN)",
        note_pid(tmp_path),
        "time.sleep(600)",
    )
    process = start(deaf, deaf, deaf)
    children = pids(tmp_path, 3)
    assert all(alive(pid) for pid in children)
    process.send_signal(number)
    finish(process)
    wait_for(lambda: not any(alive(pid) for pid in children), 5)
