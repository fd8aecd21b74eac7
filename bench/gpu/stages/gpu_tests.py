"""The tests marked `gpu`, each file in a process of its own, so that a crash costs what is left of its file alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.gpu.check import NO_GPU, Check, LeftOut, ending

OUTCOME = re.compile(r"^(tests/\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)
BEGUN = re.compile(r"^tests/\S+::\S+", re.MULTILINE)
PYTEST = (
    "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-v", "-rs", "--tb=short", "--durations=3",
    "-o", "addopts=--strict-markers --import-mode=importlib",
)  # fmt: skip


def run(check: Check) -> None:
    files = [
        file for file in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")
    ]
    for file in files:
        check.part(str(file), partial(test, check, [sys.executable, *PYTEST, str(file)]), seconds=10)


def test(check: Check, command: Sequence[str]) -> None:
    """Run pytest and note the outcome of each test, also where it crashes or has no time to come to its end."""
    output, ended = ran(command, max(5.0, check.left - 5))
    print(output)
    outcomes = dict(OUTCOME.findall(output))
    if not check.gpu and set(outcomes.values()) == {"SKIPPED"}:
        raise LeftOut(NO_GPU)
    for name, outcome in outcomes.items():
        bad = {"failed": outcome.lower()} if outcome in ("FAILED", "ERROR") else {}
        check.note(name, outcome=outcome.lower(), **bad)
    if ended:
        last = [name for name in BEGUN.findall(output) if name not in outcomes][-1:]
        raise RuntimeError(f"pytest {ended}{f', in {last[0]}' if last else ''}: {output.strip()[-300:]}")


def ran(command: Sequence[str], seconds: float) -> tuple[str, str | None]:
    """Run a command for `seconds` at most: its output, and how it ended where that is not as pytest's tests do."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), f"was stopped after {seconds:.0f} s"
    ended = None if done.returncode in (0, 1) else f"ended with {ending(done.returncode)}"
    return done.stdout.decode(errors="replace"), ended
