"""ResNet-20 on CIFAR-10 by its recipe, to the end: how long it takes, and its test error."""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial
from typing import Any

from bench.gpu import folders
from bench.gpu.check import Check
from bench.gpu.runs import Run, end
from pipeline.base.exits import EXIT_PREEMPTED

RECIPE = "configs/cifar10.yaml"
TO_SAVE, LAST = 20.0, 4.0  # seconds before the stage's end at which runs are asked to save and stop, and are killed


def run(check: Check) -> None:
    data = check.part("CIFAR-10", partial(folders.cifar10, check))
    if data is None:
        return
    options: dict[str, Any] = {"cuda_graph": True, **(tiny() if check.dry else {})}
    made = Run(name="resnet20", runs=check.work / "cifar10", data=data, config=RECIPE, options=options)
    check.part("ResNet-20 on CIFAR-10", partial(until_end, check, [made]))


def stop(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait for a command that was asked to stop, and kill it after so many seconds."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process, signal.SIGKILL)
        process.wait()


def tiny() -> dict[str, Any]:
    return {
        "iterations": 6,
        "schedule.steps": [4, 5],
        "tracking.log_every": 2,
        "compile": False,
        "recompute_bn_images": 0,
    }


def until_end(check: Check, runs: list[Run]) -> None:
    """Make these runs side by side; before the stage ends, those that are not done save and stop. Note how far each came."""
    started = time.monotonic()
    processes = [run.start() for run in runs]
    try:
        for process in processes:
            process.wait(timeout=max(1.0, check.left - TO_SAVE))
    except subprocess.TimeoutExpired:
        for process in processes:
            end(process, signal.SIGTERM)
        for process in processes:
            stop(process, max(1.0, check.left - LAST))
    seconds = time.monotonic() - started
    for run, process in zip(runs, processes, strict=True):
        whole = process.returncode == 0
        facts = {"seconds": seconds, "ended": whole, "nets_at_once": len(runs), **run.latest()}
        if process.returncode not in (0, EXIT_PREEMPTED):
            facts["failed"] = (
                f"exit code {process.returncode}: {run.output.read_text(encoding='utf-8', errors='replace')[-400:]}"
            )
        check.note("run", name=run.name, **facts)
