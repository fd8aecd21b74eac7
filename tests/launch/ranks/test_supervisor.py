"""The process group: causes, exit codes, signals, and that nothing survives it. Real processes throughout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base.layout import checkpoint_name
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.process.notes import Note
from tests.helpers import ROOT, alive, wait_for
from tests.patience import limit

# supervise() for small Python programs, one per rank, given on the command line; no torch anywhere.
LAUNCHER = """
import os, sys
from launch.ranks.supervisor import supervise
from pipeline.base import command
programs = sys.argv[1:]
commands = [[sys.executable, "-c", program] for program in programs]
environments = [{**os.environ, "RANK": str(rank)} for rank in range(len(programs))]
command.run(lambda: supervise(commands, environments))
"""
# Before it: less time for the ranks that are left when one has failed.
IMPATIENT = "import launch.ranks.supervisor as its; its.REQUEST_AFTER_SECONDS, its.FORCE_AFTER_SECONDS = 0.3, 0.6"
FOR_EVER = 1_000_000  # seconds: longer than any limit of a test

RANK = """
import os, signal, sys, time
from pathlib import Path
from launch.ranks.failure import attempt
from launch.ranks.supervisor import tell_launcher, tell_launcher_of_notes
from pipeline.base.command import UserError
rank = int(os.environ["RANK"])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # as `end_on_request` does
def wait_until(condition):
    while not condition(): time.sleep(0.02)
def main():
{body}
code, failure = attempt(rank, main)
if failure:
    tell_launcher(failure)
sys.exit(code)
"""


def rank(*lines: str) -> str:
    return RANK.format(body="".join(f"    {line}\n" for line in lines))


def start(*programs: str, before: str = "") -> subprocess.Popen[str]:
    """The launcher of these ranks. before: a line of Python that it begins with."""
    return subprocess.Popen(
        [sys.executable, "-c", before + LAUNCHER, *programs],
        cwd=ROOT,
        env={**os.environ, COMMAND_VARIABLE: "train"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=limit(60))
    return process.returncode, out, err


def written(folder: Path, count: int) -> list[Path]:
    """The files of `count` ranks in `folder`, by rank, once all of them hold something."""
    files = [folder / str(rank) for rank in range(count)]
    wait_for(lambda: all(file.exists() and file.stat().st_size for file in files), f"{count} files in {folder}")
    return files


def pids(folder: Path, count: int) -> list[int]:
    """The process ids that the ranks wrote down."""
    return [int(file.read_text()) for file in written(folder, count)]


def note_pid(folder: Path) -> str:
    return f"Path({str(folder)!r}, str(rank)).write_text(str(os.getpid()))"


def test_all_ranks_succeed_and_only_rank_0_speaks() -> None:
    program = rank("print('I am rank', rank)", "return 0")
    assert finish(start(program, program, program)) == (0, "I am rank 0\n", "")


def test_first_failing_rank_is_named_not_its_victims(tmp_path: Path) -> None:
    # Rank 0 fails later than rank 1, but is reaped first: rank 1 lingers in its own clean-up until that has happened.
    victim = rank(
        note_pid(tmp_path),
        f"wait_until(Path({str(tmp_path / 'failed')!r}).exists)",
        "raise RuntimeError('connection reset by peer')",
    )
    culprit = rank(
        "import atexit",
        f"own, other = Path({str(tmp_path / 'failed')!r}), Path({str(tmp_path / '0')!r})",
        "wait_until(lambda: other.exists() and other.stat().st_size)",
        "victim = Path('/proc', other.read_text())",
        "atexit.register(lambda: (own.touch(), wait_until(lambda: not victim.exists())))",
        "raise ValueError('image 7 is broken')",
    )
    code, _, err = finish(start(victim, culprit))
    assert code == 1
    assert "rank 1 failed first: ValueError: image 7 is broken" in err
    assert "connection reset" not in err


def test_killed_rank_is_the_cause(tmp_path: Path) -> None:
    # The victim has told of its failure before the other is killed.
    ready, told = (f"Path({str(tmp_path / name)!r})" for name in ("ready", "told"))
    victim = rank(
        f"import atexit; atexit.register({told}.touch)",
        f"wait_until({ready}.exists)",
        "raise RuntimeError('connection reset by peer')",
    )
    culprit = rank(f"{ready}.touch()", f"wait_until({told}.exists)", "os.kill(os.getpid(), signal.SIGKILL)")
    code, _, err = finish(start(victim, culprit))
    assert code == 128 + signal.SIGKILL
    assert "rank 1 failed first: was killed by SIGKILL" in err
    assert "connection reset" not in err and "memory ran out" not in err


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 200 MB, made by root."""
    parent = Path("/sys/fs/cgroup/memory")
    group = parent / f"small-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(f"{200 << 20}")
    except OSError as error:
        pytest.skip(f"no control group of memory can be made in {parent}: {error.strerror}")
    yield group
    group.rmdir()


def test_a_rank_that_the_kernel_ended_for_want_of_memory_is_told_so(small_group: Path) -> None:
    greedy = rank(
        f"Path({str(small_group / 'cgroup.procs')!r}).write_text(str(os.getpid()))", "held = b'x' * (1 << 30)"
    )
    code, _, err = finish(start(rank(f"time.sleep({FOR_EVER})"), greedy, before=IMPATIENT))
    assert code == 128 + signal.SIGKILL
    assert (
        "error: rank 1 failed first: was killed by SIGKILL, probably because memory ran out: " in err.splitlines()[-1]
    )


def test_a_killed_rank_is_named_with_its_last_word(tmp_path: Path) -> None:
    """Which its watchdog has written to the file that it told the launcher of."""
    activity = tmp_path / "rank-1.json"
    culprit = rank(
        "import json, socket",
        f"activity = Path({str(activity)!r})",
        "values = dict(rank=1, beat=3, position=9, iteration=1234, activity='saving', standing=0.0, time=0.0)",
        "activity.write_text(json.dumps({**values, 'host': socket.gethostname(), 'process': os.getpid()}))",
        "tell_launcher_of_notes(activity)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    code, _, err = finish(start(rank(f"time.sleep({FOR_EVER})"), culprit, before=IMPATIENT))
    assert code == 128 + signal.SIGKILL
    error = err.splitlines()[-1]
    assert error.startswith("error: rank 1 failed first: was killed by SIGKILL")
    assert error.endswith(f"its last word: {Note.read(activity)}") and "iteration 1,234, saving" in error


def test_user_error_is_one_sentence_once() -> None:
    program = rank("raise UserError('there is no folder here: make one')")
    code, out, err = finish(start(program, program, program))
    assert (code, out, err) == (2, "", "error: there is no folder here: make one\n")


def test_failure_without_report_shows_the_output() -> None:
    code, _, err = finish(start("pass", "print('half a word'); raise SystemExit(9)"))
    assert code == 9
    assert "half a word" in err and "rank 1 failed first: ended with exit code 9" in err


def test_ranks_that_hang_after_a_failure_are_stopped(tmp_path: Path) -> None:
    hang = rank("signal.signal(signal.SIGTERM, signal.SIG_IGN)", note_pid(tmp_path), f"time.sleep({FOR_EVER})")
    culprit = rank(f"wait_until(Path({str(tmp_path / '0')!r}).exists)", "raise ValueError('no')")
    process = start(hang, culprit, before=IMPATIENT)
    (hung,) = pids(tmp_path, 1)
    code, _, err = finish(process)
    assert code == 1 and "rank 1 failed first" in err
    assert not alive(hung)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1])
def test_stop_request_reaches_every_rank_once(tmp_path: Path, number: signal.Signals) -> None:
    """A second signal, sent when each rank has had the first, comes behind all that the launcher made of that one."""
    (ready := tmp_path / "ready").mkdir()
    (asked := tmp_path / "asked").mkdir()
    counting = rank(
        "seen, over = [], []",
        f"signal.signal({int(number)}, lambda *_: seen.append(1))",
        "signal.signal(signal.SIGHUP, lambda *_: over.append(1))",
        note_pid(ready),
        "wait_until(lambda: seen)",
        note_pid(asked),
        "wait_until(lambda: over)",
        "return 75 if len(seen) == 1 else 99",
    )
    process = start(counting, counting)
    pids(ready, 2)
    process.send_signal(number)
    pids(asked, 2)
    process.send_signal(signal.SIGHUP)
    assert finish(process)[0] == 75


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGHUP, 75), (signal.SIGTERM, 75)])
@pytest.mark.parametrize(
    "answer",
    ["from pipeline.base.stopping import end_on_request; end_on_request()", "signal.signal({number}, signal.SIG_DFL)"],
    ids=["rank 0 says it", "rank 0 cannot yet"],
)
def test_asked_before_there_is_anything_to_save(
    tmp_path: Path, number: signal.Signals, expected: int, answer: str
) -> None:
    program = rank(answer.format(number=int(number)), note_pid(tmp_path), f"time.sleep({FOR_EVER})")
    process = start(program, program)
    children = pids(tmp_path, 2)
    os.killpg(process.pid, number)  # as the terminal does
    code, _, err = finish(process)
    assert code == expected
    assert err == "stopped: nothing had to be saved yet; to go on: train\n"
    assert not any(alive(pid) for pid in children)


def test_ctrl_c_before_a_rank_has_its_handler_waits_for_it(tmp_path: Path) -> None:
    """Python's own would print a traceback."""
    program = f"""
import pathlib, os, time
from pipeline.base.stopping import end_on_request
folder = pathlib.Path({str(tmp_path)!r})
(folder / os.environ["RANK"]).write_text(str(os.getpid()))
while not (folder / "go").exists(): time.sleep(0.02)
end_on_request()
time.sleep({FOR_EVER})
"""
    process = start(program, program)
    pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    code, _, err = finish(process)
    assert (code, err) == (130, "stopped: nothing had to be saved yet; to go on: train\n")


def test_a_second_kind_of_request_before_a_rank_has_handlers(tmp_path: Path) -> None:
    """Ctrl-C waits for the handler; a SIGTERM behind it ends the rank, which is no failure of the rank."""
    program = f"""
import pathlib, os, time
(pathlib.Path({str(tmp_path)!r}) / os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep({FOR_EVER})
"""
    process = start(program, program)
    pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err) == (130, "stopped: nothing had to be saved yet; to go on: train\n")


def test_ctrl_c_when_all_ranks_have_ended_says_nothing_else() -> None:
    before = """
import signal, launch.ranks.supervisor as its
from pipeline.base.stopping import end_on_request
end_on_request()
wait = its._wait
its._wait = lambda *given: (wait(*given), signal.raise_signal(signal.SIGINT))[0]
"""
    assert finish(start(rank("return 0"), before=before)) == (0, "", "")


def test_a_failure_while_ranks_save_is_told(tmp_path: Path) -> None:
    """Ctrl-C does not hide it, and what it lost."""
    program = rank(
        "asked = []",
        "signal.signal(signal.SIGINT, lambda *_: asked.append(1))",
        note_pid(tmp_path),
        "wait_until(lambda: asked)",
        "raise ValueError('the disk is gone')",
    )
    process = start(program, program)
    pids(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 1 and "failed first: ValueError: the disk is gone" in err


# Before the launcher: its clock stands still, and jumps once the file `later` is there. `taken` counts the requests.
CLOCK = """
import time, types
from pathlib import Path
from pipeline.base import stopping
def now():
    with open({taken!r}, "ab") as file: file.write(b".")
    return 10.0 if Path({later!r}).exists() else 0.0
stopping.time = types.SimpleNamespace(monotonic=now, sleep=time.sleep)
"""


def test_second_interrupt_kills(tmp_path: Path) -> None:
    taken, later = tmp_path / "taken", tmp_path / "later"
    (ready := tmp_path / "ready").mkdir()
    (asked := tmp_path / "asked").mkdir()
    (checkpoints := tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (checkpoints / checkpoint_name(7, "0" * 64)).touch()
    stubborn = rank(
        "asked = []",
        "signal.signal(signal.SIGINT, lambda *_: asked.append(1))",
        f"tell_launcher_of_notes(Path({str(tmp_path / 'run' / 'activity' / 'rank-0.json')!r}))",
        note_pid(ready),
        "wait_until(lambda: asked)",
        note_pid(asked),
        f"time.sleep({FOR_EVER})",
    )
    process = start(stubborn, stubborn, before=CLOCK.format(taken=str(taken), later=str(later)))
    children = pids(ready, 2)
    process.send_signal(signal.SIGINT)
    pids(asked, 2)
    process.send_signal(signal.SIGINT)  # the same press, once more: a parent has passed it on, too
    wait_for(lambda: taken.stat().st_size == 2, "the second signal")
    later.touch()
    assert process.poll() is None and all(map(alive, children))
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and "ended at once: the newest checkpoint is of iteration 7 (" in err
    assert not any(alive(pid) for pid in children)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_no_orphan_when_the_launcher_dies(tmp_path: Path, number: signal.Signals) -> None:
    deaf = rank(
        "for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(one, signal.SIG_IGN)",
        note_pid(tmp_path),
        f"time.sleep({FOR_EVER})",
    )
    process = start(deaf, deaf, deaf)
    children = pids(tmp_path, 3)
    assert all(alive(pid) for pid in children)
    process.send_signal(number)
    finish(process)
    wait_for(lambda: not any(alive(pid) for pid in children), "the end of the ranks")
