"""Compares gloo ranks with unsynchronised copies and with the plan's prediction, and the tree reduction with all-reduce.

Within one set of processes the ways take turns, one update each: `copies` (no rank waits for another), `tree`, `allreduce`.
The rates and links of this host are stored for the plan of launch/slurm.py --dry-run (configs/rates.yaml).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics as averages
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.training import alone, our_step, synthetic  # noqa: E402
from launch.forecast import rates  # noqa: E402
from launch.forecast.plan import device_of, predict  # noqa: E402
from launch.local import rank_environment, reserve_port  # noqa: E402
from launch.on_slurm.allocation import Allocation  # noqa: E402
from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.augment import AugmentConfig  # noqa: E402
from pipeline.process.device import cpu_name  # noqa: E402
from pipeline.process.world import open_world, set_threads  # noqa: E402
from pipeline.run.config import Config  # noqa: E402
from pipeline.training.step import StepConfig  # noqa: E402
from pipeline.training.tree import tree_all_reduce  # noqa: E402

COPIES, TREE, ALLREDUCE = "copies", "tree", "allreduce"
WALL, CPU = "", " CPU"  # suffix of the name of a list of seconds: the clock
LINK_BYTES = (400, 25 << 20)  # a small sum, whose time is latency, and the size of a DDP bucket
Figures = dict[str, list[float]]


def work(options: argparse.Namespace) -> None:
    """Run one rank: write the seconds of each of its updates, by way, and of sums alone, by size, to a file of its own."""
    with open_world("cpu") as world:
        set_threads(world, options.threads)
        batch = options.rows * world.size
        images, labels = synthetic(options.rows, options.crop, world.device)
        copy = StepConfig(batch=options.rows, precision=options.precision, reduction="allreduce")
        steps = {COPIES: our_step(options.arch, copy, options.bn_group, alone(world.device))}
        if world.size > 1:
            whole = replace(copy, batch=batch)
            steps[TREE] = our_step(options.arch, replace(whole, reduction="tree"), options.bn_group, world)
            steps[ALLREDUCE] = our_step(options.arch, whole, options.bn_group, world)
        times: dict[str, Any] = {way: [] for way in steps}
        for number in range(options.rounds + 1):
            # Each round starts with another way, so that no way always follows the same one.
            turn = number % len(steps)
            for way in [*list(steps)[turn:], *list(steps)[:turn]]:
                if world.size > 1:
                    dist.barrier()
                started, cpu = time.perf_counter(), time.process_time()
                steps[way].step(images, labels, 1e-3)
                steps[way].take_metrics()
                if number:  # the first update of each way warms up
                    times[way].append(time.perf_counter() - started)
                    times.setdefault(way + CPU, []).append(time.process_time() - cpu)
            if number and world.size > 1:
                for way in (TREE, ALLREDUCE):
                    for size in LINK_BYTES:
                        wall, cpu = sum_seconds(way, size)
                        times.setdefault(f"{way} {size}", []).append(wall)
                        times.setdefault(f"{way} {size}{CPU}", []).append(cpu)
        for step in steps.values():
            step.close()
    options.worker.joinpath(f"{world.rank}.json").write_text(json.dumps(times), encoding="utf-8")


def sum_seconds(way: str, size: int) -> tuple[float, float]:
    """Return the seconds, and the CPU seconds of this rank, of one sum of `size` bytes over the ranks."""
    buffer = torch.ones(size // 4)
    dist.barrier()
    started, cpu = time.perf_counter(), time.process_time()
    if way == TREE:
        tree_all_reduce(buffer, dist.group.WORLD)
    else:
        dist.all_reduce(buffer)
    return time.perf_counter() - started, time.process_time() - cpu


def measure(options: argparse.Namespace, size: int) -> list[Figures]:
    """Return what each of `size` ranks measured."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder, reserve_port() as port:
        command = [sys.executable, __file__, *options.given, "--worker", folder]
        ranks = [subprocess.Popen(command, env=rank_environment(rank, size, port)) for rank in range(size)]
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise UserError(f"a rank of {size} failed: see its error above")
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def step_seconds(ranks: list[Figures], way: str) -> list[float]:
    """Return the seconds of an update, one value per round: the harmonic mean over ranks, because rates of copies add up."""
    rounds = zip(*(rank[way] for rank in ranks), strict=True)
    return [len(turn) / sum(1 / seconds for seconds in turn) for turn in rounds]


def link_of(ranks: list[Figures], way: Any, clock: str) -> rates.Link:
    size = len(ranks)
    small, large = (averages.median(step_seconds(ranks, f"{way} {size}{clock}")) for size in LINK_BYTES)
    moved = 2 * (size - 1) / size * (LINK_BYTES[1] - LINK_BYTES[0])
    return rates.Link(
        kind="cpu",
        device=rates.device_name(torch.device("cpu")),
        reduction=way,
        ranks=size,
        bytes_per_second=round(moved / (large - small if large > small else large)),  # noise can reverse the two
        latency_seconds=round(small, 6),
        **rates.stamp(),
    )


def rate_of(options: argparse.Namespace, ranks: list[Figures], clock: str) -> rates.Rate:
    return rates.Rate(
        kind="cpu",
        device=rates.device_name(torch.device("cpu")),
        arch=options.arch,
        stride="v1.5",
        precision=options.precision,
        compile=False,
        crop=options.crop,
        micro_batch=min(options.rows, options.bn_group),
        threads=options.threads,
        processes=len(ranks),
        images_per_second=round(options.rows / averages.median(step_seconds(ranks, COPIES + clock)), 3),
        **rates.stamp(),
    )


def predicted(options: argparse.Namespace, size: int, reduction: Any, file: Path) -> float:
    """Return the seconds of an update as the plan of launch/slurm.py --dry-run predicts them from `file`."""
    config = Config(
        arch=options.arch, stride="v1.5", shortcut="B", batch=options.rows * size, bn_group=options.bn_group,
        precision=options.precision, reduction=reduction, augment=AugmentConfig(crop=options.crop),
    )  # fmt: skip
    cores = {"gpus_per_node": 0, "tasks_per_node": size, "cpus_per_gpu": options.threads, "rates": str(file)}
    allocation = Allocation(**cores)
    assert device_of(config, allocation).source.startswith("measured")
    return predict(config, allocation).seconds


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/scaling.py\n  python bench/scaling.py --arch resnet18 --rows 64 --ranks 2 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", default="resnet50", help="default resnet50")
    parser.add_argument(
        "--rows", type=int, default=32, help="images of each rank; batch 256 on 8 ranks: 32 (the default)"
    )
    parser.add_argument("--bn-group", type=int, default=32, help="images of a forward pass (default 32)")
    parser.add_argument("--crop", type=int, default=224, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default 1 2 4")
    parser.add_argument("--threads", type=int, default=1, help="per rank (default 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rates", type=Path, default=rates.RATES_FILE, help="file that the plan reads (configs/rates.yaml)"
    )
    parser.add_argument(
        "--store", action=argparse.BooleanOptionalAction, default=True, help="store the results in that file"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.given = arguments
    options.bn_group = min(options.bn_group, options.rows)
    for size in options.ranks:
        if size & (size - 1):
            raise UserError(f"--ranks {size} is not a power of two: the tree reduction needs one")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.worker:
        work(options)
        return
    worlds: dict[int, list[Figures]] = {}
    with Progress(len(options.ranks), "scaling", "worlds") as progress:
        for size in options.ranks:
            worlds[size] = measure(options, size)
            progress.advance()
    where = f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"
    title = (
        f"{options.arch} {options.precision}, {options.rows} images a rank, {options.threads} thread a rank, {where}"
    )
    columns = (
        "processes",
        "s an update",
        "/ copies",
        "fastest of each",
        "predicted / measured",
        "by the rate of 1 process",
    )
    figures = {}
    for clock, name in ((WALL, "by the clock"), (CPU, "in CPU time of each rank, its waiting left out")):
        figures[name] = compare(options, worlds, clock)
        rows = [(processes, *cells(row)) for processes, row in figures[name].items()]
        print_table(f"{title}; {name}", (*columns, "tree / all-reduce"), rows)
    entries = measurements(options, worlds, WALL)
    if options.store:
        rates.store(entries, options.rates)
        print(f"stored for the plan of launch/slurm.py --dry-run: {options.rates}")
    if options.json:
        link_entries = [entry for entry in entries if isinstance(entry, rates.Link)]
        links = {f"{link.ranks} {link.reduction}": link.bytes_per_second for link in link_entries}
        print_json({"figures": figures, "link_bytes_per_second": links, "load": os.getloadavg()[0]})


def measurements(
    options: argparse.Namespace, worlds: dict[int, list[Figures]], clock: str
) -> list[rates.Rate | rates.Link]:
    """Return the rates and links that the plan needs, by one of the two clocks."""
    entries: list[rates.Rate | rates.Link] = [rate_of(options, ranks, clock) for ranks in worlds.values()]
    shared = [ranks for size, ranks in worlds.items() if size > 1]
    return [*entries, *(link_of(ranks, way, clock) for ranks in shared for way in (TREE, ALLREDUCE))]


def compare(options: argparse.Namespace, worlds: dict[int, list[Figures]], clock: str) -> dict[str, dict[str, float]]:
    """Return by processes and way: seconds of an update, ratios within a round (median over rounds), predictions."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-rates-") as folder:
        file, only_one = Path(folder, "rates.yaml"), Path(folder, "one.yaml")
        entries = measurements(options, worlds, clock)
        rates.store(entries, file)
        rates.store([entry for entry in entries if not isinstance(entry, rates.Rate) or entry.processes == 1], only_one)
        for size, ranks in worlds.items():
            copies = step_seconds(ranks, COPIES + clock)
            figures[f"{size} copies" if size > 1 else "1 alone"] = {"seconds": averages.median(copies)}
            for way in (TREE, ALLREDUCE) if size > 1 else ():
                step = step_seconds(ranks, way + clock)
                seconds = averages.median(step)
                figures[f"{size} ranks, {way}"] = row = {
                    "seconds": seconds,
                    "over_copies": median_ratio(copies, step),
                    # Other work on the machine can only lengthen an update, so the shortest is closest to the truth.
                    "fastest": min(copies) / min(step),
                    "predicted": predicted(options, size, way, file) / seconds,
                }
                if 1 in worlds:
                    row["predicted_from_one"] = predicted(options, size, way, only_one) / seconds
                if way == TREE:
                    row["tree_cost"] = median_ratio(step, step_seconds(ranks, ALLREDUCE + clock))
    return figures


def median_ratio(over: list[float], under: list[float]) -> float:
    return averages.median(a / b for a, b in zip(over, under, strict=True))


def cells(row: dict[str, float]) -> list[str]:
    ratios = ("over_copies", "fastest", "predicted", "predicted_from_one", "tree_cost")
    return [f"{row['seconds']:.2f}", *(f"{row[name]:.3f}" if name in row else "" for name in ratios)]


if __name__ == "__main__":
    run(main)
