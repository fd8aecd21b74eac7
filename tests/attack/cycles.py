"""Starts and ends of the launchers, in drawn ways at drawn moments: nothing stays behind, no process, segment or file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil

from tests.attack.attack import Attack, Outcome
from tests.digits import write_dataset
from tests.helpers import alive
from tests.launch.launchers import TINY, environment, script
from tests.patience import limit

MARK = "ATTACK_CYCLE"  # in the environment of everything that a cycle starts
FINISHES = "left to finish"
ENDS: dict[str, set[int]] = {  # how a start ends: the exit codes that it may have
    FINISHES: {0},
    "SIGINT": {130},
    "SIGTERM": {75},
    "SIGKILL of the launcher": {-signal.SIGKILL},
    "SIGKILL of a rank": {128 + signal.SIGKILL},
}
# Share of the ends that come once the ranks have trained; the others come within STARTING seconds after the first line.
WORKING = 0.5
STARTING = 4.0
ENDS_WITHIN, GONE_WITHIN = 60.0, 20.0  # seconds on a quiet machine
SEGMENTS = Path("/dev/shm")
# In the temporary folder: caches, and what the next start of launch/ray_train.py removes where one was killed.
CACHES = ("torchinductor_", "resnet-ray-")


def cycles(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """Of launch/local.py with two ranks."""
    _cycles(random, tries, folder, outcome, [*script("local.py"), "--procs", "2"], "launch.ranks.worker", ENDS_WITHIN)


def ray_cycles(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """Of launch/ray_train.py with two workers. A killed worker is replaced: the run finishes."""
    _cycles(random, tries, folder, outcome, [*script("ray_train.py"), "--workers", "2"], None, 4 * ENDS_WITHIN)


def _cycles(
    random: Random, tries: int, folder: Path, outcome: Outcome, command: list[str], worker: str | None, seconds: float
) -> None:
    if tries:
        write_dataset(folder)
        (folder / "tiny.yaml").write_text(TINY.format(data=folder / "dataset"))
    for number in range(tries):
        how = random.choice([end for end in ENDS if worker or end != "SIGKILL of a rank"])
        moment = None if random.random() < WORKING else random.uniform(0, STARTING)
        cycle = _Cycle(folder, number, command, worker, seconds)
        if wrong := cycle.run(how, moment):
            when = "once it trained" if moment is None else f"after {moment:.2f} s"
            outcome.wrong(f"cycle {number} of {Path(command[1]).name}, {how} {when}: {wrong}")
        else:
            outcome.right(how)


class _Cycle:
    """One start and end. Everything that it leaves behind is found by its mark, its temporary folder, or in /dev/shm."""

    def __init__(self, folder: Path, number: int, command: list[str], worker: str | None, seconds: float) -> None:
        self.run_folder = folder / "runs" / f"run-{number}"
        self.folder, self.command, self.worker, self.seconds = folder, command, worker, seconds
        self.mark = f"{folder.name}-{number}"
        self.temporary = folder / f"tmp-{number}"
        self.temporary.mkdir()
        self.segments = _segments()

    def run(self, how: str, moment: float | None) -> str:
        """What was wrong; empty where nothing was."""
        words = ["--config", "tiny.yaml", "--name", self.run_folder.name, "--checkpoint.every", "1000000"]
        if how != FINISHES:
            words += ["--iterations", "1000000", "--evaluation.every", "1000000"]
        marked = {MARK: self.mark, "TMPDIR": str(self.temporary), "HOME": str(self.folder)}
        log = self.folder / f"{self.run_folder.name}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*self.command, *words],
                cwd=self.folder,
                env=environment(marked),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            if how != FINISHES:
                self._wait_until(process, moment)
                self._end(process, how)
            code = process.wait(limit(self.seconds))
            early = moment is not None and how == "SIGKILL of a rank"  # there may have been no rank yet
            if code not in ENDS[how] and not early:
                return f"exit code {code}: {log.read_text()[-300:]}"
            return self._left()
        except subprocess.TimeoutExpired:
            return f"it still runs after {limit(self.seconds):.0f} s: {log.read_text()[-300:]}"
        finally:
            for pid in (*self._marked(), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def _wait_until(self, process: subprocess.Popen[bytes], moment: float | None) -> None:
        log, metrics = self.folder / f"{self.run_folder.name}.log", self.run_folder / "metrics.jsonl"
        until = time.monotonic() + limit(self.seconds)
        # Python's own start comes before the first line; a signal in it ends any program.
        while (
            not (metrics.exists() if moment is None else log.stat().st_size)
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.02)
        time.sleep(moment or 0)

    def _end(self, process: subprocess.Popen[bytes], how: str) -> None:
        if how == "SIGKILL of a rank":
            ranks = [pid for pid in self._marked() if self.worker and self.worker in _command_of(pid)]
            for pid in ranks[-1:] or [process.pid]:
                os.kill(pid, signal.SIGKILL)
            return
        number = signal.SIGKILL if how.startswith("SIGKILL") else signal.Signals[how]
        process.send_signal(number)

    def _left(self) -> str:
        """What stays behind for longer than GONE_WITHIN."""
        until = time.monotonic() + limit(GONE_WITHIN)
        while (left := self._all_left()) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def _all_left(self) -> str:
        if processes := self._marked():
            return "these processes stay: " + ", ".join(f"{pid} ({_command_of(pid)[:120]})" for pid in processes)
        if files := [path.name for path in self.temporary.iterdir() if not path.name.startswith(CACHES)]:
            return f"these temporary files stay: {', '.join(files)}"
        if segments := _segments() - self.segments - _held():
            return f"these segments stay in {SEGMENTS}: {', '.join(segments)}"
        return ""

    def _marked(self) -> list[int]:
        mark, found = f"{MARK}={self.mark}".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return [pid for pid in sorted(found) if alive(pid)]


def _command_of(pid: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _segments() -> set[str]:
    return {path.name for path in SEGMENTS.iterdir()}


def _held() -> set[str]:
    """Segments that a living process has mapped or open: others on this machine make some, too."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                for line in (entry / "maps").read_text().splitlines():
                    if f" {SEGMENTS}/" in line:
                        found.add(line.rpartition(f"{SEGMENTS}/")[2].split("/")[0])
                for descriptor in (entry / "fd").iterdir():
                    with suppress(OSError):
                        if (target := os.readlink(descriptor)).startswith(f"{SEGMENTS}/"):
                            found.add(Path(target).relative_to(SEGMENTS).parts[0])
    return found


CYCLES = Attack(
    name="cycles",
    what="starts and ends of launch/local.py with 2 ranks: finished, Ctrl-C, SIGTERM, SIGKILL of launcher or rank",
    run=cycles,
    short=2,
    full=50,
)
RAY_CYCLES = Attack(
    name="ray-cycles",
    what="starts and ends of launch/ray_train.py with 2 workers: finished, Ctrl-C, SIGTERM, SIGKILL of the launcher",
    run=ray_cycles,
    short=0,
    full=6,
)
