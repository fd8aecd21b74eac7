"""`python -m pipeline.tune` against a small grid of the settings that it may choose."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import folders, report
from bench.gpu.check import Check
from bench.gpu.runs import device_name, end
from bench.gpu.stages.loader import measure
from pipeline.base.checkout import CONFIGS
from pipeline.base.cores import available_cores

STORED = CONFIGS / "loader.yaml"  # where the tuner stores what it found
SECONDS = 40  # of its default of 60; trying the decoders comes before, some 25 s
ROUNDS = 3


def run(check: Check) -> None:
    data = check.part("sample images", partial(folders.samples, check))
    if data is None:
        return
    found = check.part("python -m pipeline.tune", partial(tune, check, data))
    for rung in ("gpu", "gpu-whole", "cpu") if check.gpu else ("cpu",):
        check.apart({f"grid of {rung}": partial(grid, rung=rung)}, 60)
    rates = [
        line for line in report.read([check.results]) if (line["stage"], line["what"]) == (check.stage, "images/s")
    ]
    if found and rates:
        fastest = max(rates, key=lambda line: float(line["value"]))
        best: dict[str, Any] = {key: fastest[key] for key in ("decode_on", "threads", "decode_ahead")}
        check.apart({"tuned against the grid": partial(compare, tuned=found, best=best)}, 45)


def tune(check: Check, data: Path) -> dict[str, Any]:
    """Run the tuner; return the settings that it found. What was stored for this machine before stays."""
    small = ["--seconds", "4", "--batch", "16"] if check.dry else ["--seconds", str(SECONDS)]
    with unchanged(STORED):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tune", str(data), "--device", device_name(), *small, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            output, _ = process.communicate(timeout=max(5.0, check.left - 30))
        finally:
            end(process, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError(f"pipeline.tune ended with {process.returncode}")
    figures = json.loads(output.splitlines()[-1])
    settings = {**figures["queues"], "decode_on": figures["decode_on"]}
    gain = figures["images_per_second"] / figures["untuned_images_per_second"]
    check.note("python -m pipeline.tune", settings=settings, gain=gain, measurements=figures["measurements"])
    return settings


@contextmanager
def unchanged(file: Path) -> Iterator[None]:
    """Have `file` after the block as it was before."""
    before = file.read_bytes() if file.exists() else None
    try:
        yield
    finally:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)


def grid(check: Check, *, rung: str) -> None:
    """Measure combinations of a rung's threads and depths, without the hardware decoder, which the tuner never chooses."""
    cores = available_cores()
    for count in (cores,) if check.dry else (cores, max(1, cores // 2)):
        for ahead in (2, 4):
            case = {"decode_on": rung, "threads": count, "decode_ahead": ahead}
            check.part(str(case), partial(measure, check, case), seconds=4)


def compare(check: Check, *, tuned: dict[str, Any], best: dict[str, Any]) -> None:
    """Measure the tuner's choice and the grid's best in turns."""
    rates: dict[str, list[float]] = {"tuned": [], "best": []}
    for _ in range(1 if check.dry else ROUNDS):
        rates["tuned"].append(measure(check, tuned))
        rates["best"].append(measure(check, best))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    check.note("tuned against the grid", ratio=medians["tuned"] / medians["best"], **medians)
