"""Runs stages as child processes, each with its limit, within a budget of seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import report
from bench.gpu.check import DRY_STRETCH, NO_TIME, Check, ending
from bench.gpu.registry import Stage

LEAST = 15.0  # seconds of budget below which no stage is started: importing torch and starting CUDA takes as long


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs stages one after the other; their results, log and tables go to the folder `out`.

    work: a folder that the stages share. budget: seconds for all of them. environment: more variables for their processes.
    least: see LEAST.
    """

    out: Path
    work: Path
    dry: bool
    budget: float
    environment: Mapping[str, str]
    least: float = LEAST

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def log(self) -> Path:
        return self.out / "log.txt"

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the stages. Tables are written after each, from what all of them have measured so far."""
        deadline = time.monotonic() + self.budget
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        for file in (self.results, self.log):
            file.unlink(missing_ok=True)
        for stage in stages:
            self._run(stage, deadline - time.monotonic())
            report.write(self.out, [self.results])

    def _run(self, stage: Stage, left: float) -> None:
        """Run one stage with `left` seconds of budget."""
        limit = min(stage.seconds * (DRY_STRETCH if self.dry else 1), left)
        started = time.monotonic()
        check = Check(stage=stage.name, results=self.results, work=self.work, dry=self.dry, ends=started + limit)
        if left < self.least:
            check.note("stage", left_out=NO_TIME)
            return
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"\n===== {stage.name}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.child", stage.module, check.to_json()],
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            failed = None
            try:
                if code := process.wait(timeout=limit):
                    failed = f"its process ended with {ending(code)}"
            except subprocess.TimeoutExpired:
                failed = f"stopped at its limit of {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):  # what it started goes with it
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        outcome = {"failed": failed} if failed else {}
        check.note("stage", seconds=round(time.monotonic() - started, 1), **outcome)
