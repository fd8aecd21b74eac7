"""The tests marked `gpu`, each file in a process of its own, so that a crash costs the file alone."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.gpu.check import NO_GPU, Check, LeftOut

OUTCOME = re.compile(r"^(tests/\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)


def run(check: Check) -> None:
    files = [file for file in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    for file in files:
        check.part(str(file), partial(test, check, file), seconds=10)


def test(check: Check, file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-v",
        "--tb=short",
        "--durations=3",
    ]
    command += ["-o", "addopts=--strict-markers --import-mode=importlib", str(file)]
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(5.0, check.left - 5)
    )
    print(done.stdout)
    outcomes = {name: outcome for name, outcome in OUTCOME.findall(done.stdout)}
    if not check.gpu and set(outcomes.values()) == {"SKIPPED"}:
        raise LeftOut(NO_GPU)
    for name, outcome in outcomes.items():
        bad = {"failed": outcome.lower()} if outcome in ("FAILED", "ERROR") else {}
        check.note(name, outcome=outcome.lower(), **bad)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout.strip()[-300:]}")
