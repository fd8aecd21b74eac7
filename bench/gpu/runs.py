"""Whole trainings, as the commands that users type."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.layout import CHECKPOINTS, METRICS, RUN, checkpoints_in
from pipeline.tracking.journal import Record, read_metrics
from pipeline.training.checkpoint import read_verified


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training by launch/local.py on one rank, in the folder RUNS/NAME. config: a recipe; options: keys of the config."""

    name: str
    runs: Path
    data: Path
    config: str
    options: Mapping[str, object]

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    def start(self) -> subprocess.Popen[str]:
        """Start the command. Its output goes to NAME.txt beside the run's folder."""
        places = {"data": self.data, "runs": self.runs, "name": self.name}
        options = {**places, "device": device_name(), "tracking.mlflow": False, **self.options}
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", _typed(value))]
        command = [sys.executable, "launch/local.py", "--config", self.config, "--procs", "1", *words]
        self.runs.mkdir(parents=True, exist_ok=True)
        with open(self.output, "a", encoding="utf-8") as output:
            return subprocess.Popen(
                command,
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )

    @property
    def output(self) -> Path:
        return self.runs / f"{self.name}.txt"

    def finish(self) -> float:
        """Run the command to its end; return its seconds. Raises RuntimeError where it fails."""
        started = time.monotonic()
        self.expect_end(self.start())
        return time.monotonic() - started

    def expect_end(self, process: subprocess.Popen[str]) -> None:
        if code := process.wait():
            raise RuntimeError(
                f"run {self.name} ended with {code}: {self.output.read_text(encoding='utf-8', errors='replace')[-600:]}"
            )

    def kill_after(self, lines: int) -> None:
        """Start the command and kill all its processes as soon as it has written so many lines of metrics."""
        process, metrics = self.start(), self.folder / METRICS
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < lines):
            time.sleep(0.01)
        if process.poll() is not None:
            raise RuntimeError(
                f"run {self.name} ended before it could be killed: {self.output.read_text('utf-8', 'replace')[-600:]}"
            )
        end(process, signal.SIGKILL)
        process.wait()

    def metrics(self) -> list[Record]:
        path = self.folder / METRICS
        return read_metrics(path) if path.exists() else []

    def attempts(self) -> list[dict[str, Any]]:
        """Return what run.json holds of each attempt: where it ran, and how it decoded."""
        attempts: list[dict[str, Any]] = json.loads((self.folder / RUN).read_text(encoding="utf-8"))["attempts"]
        return attempts

    def latest(self) -> dict[str, float]:
        """Return the last value of each metric, by KIND/NAME, and the `iteration`."""
        records = self.metrics()
        values = {f"{record.kind}/{name}": value for record in records for name, value in record.values.items()}
        return {"iteration": max((record.iteration for record in records), default=0), **values}

    def weights(self) -> Tensor:
        """Return everything that the last checkpoint holds of the model and the optimizer, float32 [n]."""
        path = checkpoints_in(self.folder / CHECKPOINTS)[-1][1]
        found = read_verified(path)
        moments = (one["momentum_buffer"] for one in found.state["training"]["optimizer"]["state"].values())
        return torch.cat([value.float().flatten() for value in (*found.state["model"].values(), *moments)])


def device_name() -> str:
    """Return the value of --device for commands: that of this process, since auto refuses a GPU that torch cannot use."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a command and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
