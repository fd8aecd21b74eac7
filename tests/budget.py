"""A guard for `make test`'s time: no case takes more than five CPU seconds without a stated reason.

A pytest plugin. It counts the CPU seconds of this process, of the processes it waited for, and of those that
`tests.ranks` forks; of a case itself and its own fixtures. Fixtures that several cases share are counted apart. A
dearer case needs `@pytest.mark.costly("why it cannot be cheaper")` or is `slow`.

A session names at its end what was dearer. Only with `--strict-budget`, which `make test-times` gives, such cases fail:
on a machine that other people use too, a case can take three times its CPU seconds, and no test may fail for that reason.
`--times FILE` writes what every case took.

    python -m tests.budget FILE        prints the dearest of them
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Generator, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

from pipeline.base.parsing import CommandParser
from tests.patience import QUIET_SECONDS, fixed_work

CPU_SECONDS, SHARED_CPU_SECONDS = 5.0, 15.0  # of a case; of a fixture that cases share
# Markers; all but the first are no part of `make test`.
WITHOUT_BUDGET = ("costly", "slow", "cluster", "browser", "gpu")
SHARED_CORES = 1.5  # the same work took 1.33 times the CPU seconds with four workers on two cores as with one
CROWDED = 2.5  # wall seconds for a CPU second: more than the workers of `make test` take from one another
OVER = "over the budget"
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """Of this process, the children it waited for, and the ranks that its fork server started and that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime + _forked()


def _forked() -> float:
    """Of the fork server's children: what the server itself takes is its imports, once a session."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / TICKS  # cutime, cstime


class Budget:
    """Counts; at the session's end, names the cases over their budget. If `strict`, these cases fail."""

    def __init__(self, file: str | None, strict: bool = False) -> None:
        self.file, self.strict = file, strict
        self.shared = 0.0  # CPU seconds of shared fixtures in the present case
        self.over: list[str] = []  # sentences that the next report takes along: xdist's controller prints them

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        before, inner = cpu_seconds(), self.shared
        try:
            return (yield)
        finally:
            taken = cpu_seconds() - before
            own = taken - (self.shared - inner)
            self._note(f"fixture {fixturedef.argname}", own)
            if _is_over(own, SHARED_CPU_SECONDS):
                self.over.append(
                    f"the fixture {fixturedef.argname} took {own:.1f} CPU seconds, more than {SHARED_CPU_SECONDS:g}"
                )
            self.shared = inner + cpu_seconds() - before  # with what `_is_over` took

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if (costly := item.get_closest_marker("costly")) and not costly.args:
                raise pytest.UsageError(f"{item.nodeid} does not say why it is costly: @pytest.mark.costly('why')")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.started, self.shared, self.wall = cpu_seconds(), 0.0, time.monotonic()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            taken = cpu_seconds() - self.started - self.shared
            self._note(item.nodeid, taken, time.monotonic() - self.wall)
            if not any(map(item.get_closest_marker, WITHOUT_BUDGET)) and _is_over(taken, CPU_SECONDS):
                self.over.append(
                    f"{item.nodeid} took {taken:.1f} CPU seconds, more than {CPU_SECONDS:g}: make it cheaper, or say why "
                    'it cannot be: @pytest.mark.costly("why")'
                )
            report.user_properties += [(OVER, sentence) for sentence in self.over]
            if self.strict and self.over and report.passed:
                report.outcome, report.longrepr = "failed", "\n".join(self.over)
            self.over = []
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        reports = [report for kind in terminalreporter.stats.values() for report in kind]
        sentences = [
            sentence
            for report in reports
            if getattr(report, "when", None) == "teardown"
            for name, sentence in report.user_properties
            if name == OVER
        ]
        if sentences:
            terminalreporter.section("over the budget")
            for sentence in sentences:
                terminalreporter.write_line(sentence)

    def _note(self, name: str, cpu: float, wall: float = 0.0) -> None:
        if self.file:
            worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
            with open(self.file, "a") as file:
                file.write(json.dumps([round(cpu, 2), round(wall, 2), worker, name]) + "\n")


def _is_over(taken: float, allowed: float) -> bool:
    return taken > allowed and taken > allowed * _slowness()


def _slowness() -> float:
    """How much dearer CPU seconds are at this moment than on the machine that the budget was chosen on; at least 1.

    Workers that share cores slow each other down. Twice as much on a crowded machine, whose caches are always cold: seen
    with eight busy loops on two cores.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cpu, wall = fixed_work(time.process_time), fixed_work(time.perf_counter)
    crowd = 2.0 if wall > CROWDED * cpu else SHARED_CORES if workers > len(os.sched_getaffinity(0)) else 1.0
    return max(1.0, cpu / QUIET_SECONDS) * crowd


def print_times(file: Path, most: int = 40) -> None:
    """The dearest cases and shared fixtures of a file that `--times` wrote."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(f"{sum(row[0] for row in rows):.0f} CPU seconds in {len(rows)} cases and shared fixtures; the dearest:")
    for cpu, wall, _, name in sorted(rows, reverse=True)[:most]:
        print(f"{cpu:7.2f} CPU s {wall:7.2f} s  {name}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "Prints what `pytest --times FILE` wrote, the dearest first.", "python -m tests.budget build/times.jsonl"
    )
    parser.add_argument("file", type=Path)
    print_times(parser.parse_args(argv).file)


if __name__ == "__main__":
    main()
