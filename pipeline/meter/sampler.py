"""The process that samples a machine beside a run: python -m pipeline.meter.sampler TASK (JSON, `records.py:Task`)

It is a process, so that no sample holds the interpreter lock of a training, and imports neither torch nor MLflow. When its
standard input has a word or ends, or its parent is gone, the sampler writes a last line and ends. It also ends where a later
attempt has taken the run folder over. What goes wrong costs samples, never the run: standard error is a log.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.base.attempt import read_holder
from pipeline.base.output import prepare
from pipeline.meter.host import TOTALS, Host
from pipeline.meter.joules import Counted
from pipeline.meter.nvidia import Gpus
from pipeline.meter.rapl import Zone, zones
from pipeline.meter.records import Sample, Task

SAMPLE_SECONDS = 10.0  # at most between two samples: a package's counter may go round within minutes
LINES_PER_SPACING, LONGEST_SPACING = 720, 16  # lines come half as often after each 720, down to one in 16 times `every`
PARENT_SECONDS = 1.0
END_SECONDS = 30.0  # for the last sample, where nobody ends this process: a GPU's driver may hang


class Packages:
    """The energy of this machine's CPU packages. `say` is told, once, where it is not measured."""

    def __init__(self, found: Sequence[Zone], say: Callable[[str], None]) -> None:
        self.counters: dict[Zone, Counted] = {}
        for zone in found:
            try:
                zone.read()
                self.counters[zone] = Counted(zone.range_joules)
            except (OSError, ValueError) as error:
                say(f"the energy of {zone.name} is not measured: {error} (root may allow it: chmod a+r {zone.file})")
        if not found:
            say("the energy of the CPUs is not measured: this machine shows no RAPL counters")

    def read(self, time: float) -> None:
        for zone, counter in self.counters.items():
            with suppress(OSError, ValueError):
                counter.add(time, zone.read())

    def joules(self) -> dict[str, float]:
        return {zone.name: counter.joules for zone, counter in self.counters.items()}


class Sampler:
    """Takes samples and makes lines of them. `clock`: seconds, also while the machine sleeps."""

    def __init__(self, host: Host, gpus: Gpus, packages: Packages, clock: Callable[[], float]) -> None:
        self.host, self.gpus, self.packages, self.clock = host, gpus, packages, clock
        self.started = clock()
        self.gathered: dict[str, list[float]] = defaultdict(list)
        self._read_energy()  # the sums begin here

    def take(self) -> None:
        """Take one sample."""
        now = self._read_energy()
        for name, value in (self.host.read() | now).items():
            self.gathered[name].append(value)

    def line(self) -> Sample:
        """The average of the samples since the last line, and the sums so far."""
        values = {
            name: found[-1] if name in TOTALS else sum(found) / len(found) for name, found in self.gathered.items()
        }
        self.gathered.clear()
        joules = self.gpus.joules() | self.packages.joules()
        seconds = self.clock() - self.started
        return Sample(time=time.time_ns() // 1_000_000, seconds=seconds, values=values, joules=joules)

    def _read_energy(self) -> dict[str, float]:
        """Add the energy since the last sample up; what else the GPUs tell."""
        now = self.clock()
        self.packages.read(now)
        return self.gpus.read(now)


class Lines:
    """The file in system/. Each line is written whole or left out: a line after it holds the same sums."""

    def __init__(self, task: Task) -> None:
        self.path, self.first = Path(task.file), task.about.to_line()
        self.torn = False

    def write(self, sample: Sample) -> None:
        with suppress(OSError):  # a full disk, a file system that is gone for a while
            self.path.parent.mkdir(exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                content = sample.to_line()
                if self.torn:
                    content = b"\n" + content
                elif os.fstat(descriptor).st_size == 0:
                    content = self.first + content
                written = os.write(descriptor, content)
                self.torn = written < len(content)
            finally:
                os.close(descriptor)


def main(task: Task) -> int:
    """Sample until the run ends; 0."""
    os.nice(10)  # never run before a training thread on a busy CPU
    closing = threading.Event()
    threading.Thread(target=_watch_parent, args=(closing, task.parent), daemon=True).start()
    folder = Path(task.folder)
    sampler = Sampler(Host(folder), Gpus(task.gpus, _say), Packages(zones(), _say), _clock)
    lines, holder = Lines(task), _holder(folder)
    step = min(task.every, SAMPLE_SECONDS)
    written, line_at = 0, _clock() + task.every
    while True:
        ended = closing.wait(step)
        if holder and _holder(folder) not in (holder, ""):
            return 0
        sampler.take()
        if ended or _clock() >= line_at - step / 2:
            lines.write(sampler.line())
            written += 1
            line_at += task.every * spacing(written)
            line_at = max(line_at, _clock())  # after a pause: no lines to make up for it
        if ended:
            return 0


def spacing(written: int) -> int:
    """The time to the next line after so many, as a multiple of `every`: a long run has thousands of lines, not more."""
    return min(2 ** (written // LINES_PER_SPACING), LONGEST_SPACING)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _holder(folder: Path) -> str:
    """Who holds the run folder; "" where that cannot be read."""
    try:
        return read_holder(folder).token
    except OSError:
        return ""


def _watch_parent(closing: threading.Event, parent: int) -> None:
    """Set `closing` when standard input has data or ends, or `parent` is gone; end this process if the last sample hangs."""
    # The pipe alone is not enough: a forked sibling may hold it open.
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], PARENT_SECONDS)[0]:
            break
    closing.set()
    time.sleep(END_SECONDS)
    os._exit(1)


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    prepare()
    sys.exit(main(Task.from_json(sys.argv[1])))
