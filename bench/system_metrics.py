"""Measures what system metrics cost a training: a sampler that comes and goes beside one training, and its CPU time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.layout import METRICS  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.meter.process import metering  # noqa: E402
from pipeline.meter.records import About  # noqa: E402
from pipeline.tracking import read_metrics  # noqa: E402

SETTLING_SECONDS = 2.0  # of a block, not counted: the sampler's start
BATCH, LOG_EVERY = 16, 4


class Training:
    """The demo's training on one CPU rank, without system metrics of its own. A context manager."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.runs = runs
        self.command = [sys.executable, "-m", "pipeline.train", "--config", str(ROOT / "configs/demo.yaml")]
        for key, value in {
            "name": "run",
            "data": data,
            "runs": runs,
            "iterations": 1_000_000,
            "batch": BATCH,
            "evaluation.every": 1_000_000,
            "checkpoint.every": 1_000_000,
            "tracking.log_every": LOG_EVERY,
            "tracking.mlflow": "false",
            "tracking.system_every": 0,
        }.items():
            self.command += [f"--{key}", str(value)]

    def __enter__(self) -> Training:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def lines(self) -> np.ndarray:
        """(seconds since 1970, iteration) of every log point so far."""
        if self.process.poll() is not None:
            raise UserError(f"the training ended: {' '.join(self.command)}")
        found = read_metrics(self.runs / "run" / METRICS)
        return np.array([(one.time / 1000, one.iteration) for one in found if one.kind == "train"]).reshape(-1, 2)

    def rate(self, points: int) -> float:
        """Images per second between the next log point and that `points` after it."""
        since = time.time()
        while len(lines := self.lines_since(since)) <= points:
            time.sleep(0.2)
        (start, first), (end, last) = lines[0], lines[points]
        return float(BATCH * (last - first) / (end - start))

    def lines_since(self, moment: float) -> np.ndarray:
        lines = self.lines()
        return lines[lines[:, 0] >= moment]


def block(training: Training, points: int, every: float, folder: Path) -> float:
    """Images per second of the training in a block, beside a sampler unless `every` is 0."""
    with metering(folder, About(host="bench", rank=0, attempt=1), every, ()) if every else nullcontext():
        time.sleep(SETTLING_SECONDS)
        return training.rate(points)


def sampler_cost(folder: Path) -> dict[str, float]:
    """CPU milliseconds per sample, and memory in MB, of a sampler that has started."""
    every, seconds = 0.2, 20.0
    before = set(psutil.Process().children())
    with metering(folder, About(host="bench", rank=0, attempt=2), every, ()):
        (sampler,) = set(psutil.Process().children()) - before
        time.sleep(SETTLING_SECONDS)
        first, started = sum(sampler.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        used, samples = sum(sampler.cpu_times()[:2]) - first, (time.monotonic() - started) / every
        return {"ms_per_sample": 1e3 * used / samples, "rss_mb": sampler.memory_info().rss / 1e6}


def main() -> None:
    example = "Example: python bench/system_metrics.py --rounds 20"
    parser = argparse.ArgumentParser(description=f"{__doc__} {example}")
    parser.add_argument(
        "--rounds", type=int, default=20, help="pairs of blocks, with and without a sampler (%(default)s)"
    )
    parser.add_argument("--points", type=int, default=20, help="log points of a block, 64 images each (%(default)s)")
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between samples (%(default)g; a run's default is 10)"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "demo/dataset", help="the demo's dataset (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    options = parser.parse_args()
    if options.rounds < 2 or options.points < 1:
        raise UserError("give at least --rounds 2 and --points 1")
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-meter-") as name, Training(options.data, Path(name)) as training:
        while len(training.lines()) < 10:  # the training has warmed up
            time.sleep(0.5)
        with Progress(2 * options.rounds, "system metrics", "block") as progress:
            for number in range(options.rounds):
                rates = {}
                # Each order as often as the other: a trend counts for neither.
                for every in (options.every, 0.0) if number % 2 else (0.0, options.every):
                    rates[every] = block(training, options.points, every, Path(name))
                    progress.advance()
                pairs.append((rates[options.every], rates[0.0]))
        cost = sampler_cost(Path(name))
    logs = np.log([beside / alone for beside, alone in pairs])
    ratio, error = float(np.exp(np.mean(logs))), float(np.std(logs, ddof=1) / np.sqrt(len(logs)))
    rows = [(f"{beside:.1f}", f"{alone:.1f}", f"{beside / alone:.4f}") for beside, alone in pairs]
    print_table(f"A sample every {options.every:g} s", ("images/s with", "images/s without", "ratio"), rows)
    print(f"ratio {ratio:.4f} ± {error:.4f} (geometric mean and standard error of {len(pairs)} interleaved pairs)")
    print(f"the sampler: {cost['ms_per_sample']:.2f} ms of one core for each sample, {cost['rss_mb']:.0f} MB")
    if options.json:
        median = float(np.exp(np.median(logs)))
        print_json({"ratio": ratio, "standard_error": error, "median": median, "pairs": pairs, **cost})


if __name__ == "__main__":
    run(main)
