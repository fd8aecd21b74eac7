"""Compares what `python -m pipeline.tune` finds in its time with the best of a grid of all its values, measured one by one.

Everything is measured in one process, in turns. Each round goes through the whole grid in another order; then the grid's best
few, the tuner's choice and the built-in setting take turns, because the highest of many noisy medians is too high.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics as averages
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.loader import shard_samples  # noqa: E402
from pipeline.base.command import run  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.probe import Probe  # noqa: E402
from pipeline.data.search import Axis, Setting  # noqa: E402
from pipeline.data.tuned import Machine  # noqa: E402
from pipeline.process.world import open_world  # noqa: E402
from pipeline.tune import Speed, search, space, speed_of, working_rungs  # noqa: E402

FINALISTS = 5  # of the grid


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/tune.py\n  python bench/tune.py data/imagenet --rounds 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", type=Path, help="dataset folder (default: the 140 sample images)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seconds", type=float, default=60, help="the tuner's time (default 60)")
    parser.add_argument(
        "--keys", nargs="+", default=[], metavar="KEY", help="of the grid's (default: all of the tuner's)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="through the whole grid (default 1)")
    parser.add_argument("--last-rounds", type=int, default=7, help="of the grid's best few (default 7)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-tune-") as folder, open_world(options.device) as world:
        options.dataset = options.dataset or shard_samples(Path(folder))
        options.config = options.batch = None
        speed, machine = speed_of(options, world.device, ranks=1), Machine.of(world.device, 1)
        rungs = working_rungs(speed, Probe())
        found, start = search(speed, rungs, machine.cores, options.seconds)
        _, axes = space(rungs, machine.cores)
        grid = [{**start, **setting} for setting in all_settings(axes, options.keys)]
        rates = measure(speed, grid, options.rounds)
        order = sorted(range(len(grid)), key=lambda i: -averages.median(rates[i]))
        finalists: dict[str, Setting] = {f"grid {place}": grid[i] for place, i in enumerate(order[:FINALISTS], start=1)}
        finalists |= {"tuner": found.setting, "built-in": start}
        last = dict(zip(finalists, measure(speed, [*finalists.values()], options.last_rounds), strict=True))
    medians = {name: averages.median(values) for name, values in last.items()}
    best = max(medians[name] for name in finalists if name.startswith("grid"))
    keys = [key for key in start if len({setting[key] for setting in grid}) > 1]
    rows = [
        (name, *(setting[key] for key in keys), f"{medians[name]:,.0f}", f"{medians[name] / best:.3f}")
        for name, setting in finalists.items()
    ]
    title = f"{machine.device}, {machine.cores} cores, load {load:.0f}: {len(grid)} settings, {found.measurements} measurements"
    print_table(title, ("setting", *keys, "images/s", "of the best"), rows)
    if options.json:
        figures = {"grid": len(grid), "measurements": found.measurements, "load": load, "images_per_second": medians}
        print_json(
            {"tuner_of_best": medians["tuner"] / best, "built_in_of_best": medians["built-in"] / best, **figures}
        )


def all_settings(axes: Sequence[Axis], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of a change of each axis; only of those that change one of `keys`, if there are any."""
    axes = [axis for axis in axes if not keys or set(keys) & set(axis[0])]
    return [{key: value for change in changes for key, value in change.items()} for changes in itertools.product(*axes)]


def measure(speed: Speed, settings: Sequence[Setting], rounds: int) -> list[list[float]]:
    """images/s of each setting, one a round; in every round the settings take turns in another order."""
    rates: list[list[float]] = [[] for _ in settings]
    shuffled = random.Random(0)
    with Progress(rounds * len(settings), "measurements", "settings") as progress:
        for _ in range(rounds):
            for i in shuffled.sample(range(len(settings)), len(settings)):
                rates[i].append(speed(settings[i]))
                progress.advance()
    return rates


if __name__ == "__main__":
    run(main)
