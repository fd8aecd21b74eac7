"""Compares our loader with torchvision's DataLoader, webdataset and DALI: same shards, same augmentation, same cores."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics as averages
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.loader_opponents import Batches, dali_loader, torchvision_loader, webdataset_loader  # noqa: E402
from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.augment import AugmentConfig  # noqa: E402
from pipeline.data.dataset import Dataset, Split, Statistics  # noqa: E402
from pipeline.data.loader import LoaderConfig, training_batches  # noqa: E402
from pipeline.data.order import Order  # noqa: E402

SAMPLES = Path(os.environ.get("IMAGENET_SAMPLES") or ROOT.parent / "shared/data/imagenet-samples.tar")
COPIES = 8  # of the few sample images; without copies every epoch and every shuffle buffer would end at once
LOADERS = ("ours", "torchvision", "webdataset", "dali")
OPPONENTS = {"torchvision": torchvision_loader, "webdataset": webdataset_loader, "dali": dali_loader}

Opener = Callable[[], AbstractContextManager[Batches]]


def ours(split: Split, statistics: Statistics, config: AugmentConfig, batch: int, threads: int) -> Iterator[Batches]:
    order = Order(len(split), batch, seed=0)
    loading = LoaderConfig(threads=threads)
    device, rows = torch.device("cpu"), slice(0, batch)
    with training_batches(split, order, config, statistics, rows, 0, sys.maxsize, device, loading) as batches:
        yield ((batch.images, batch.labels) for batch in batches)


@contextmanager
def opened(name: str, split: Split, statistics: Statistics, config: AugmentConfig, batch: int, cores: int):  # type: ignore[no-untyped-def]
    if name == "ours":
        yield from ours(split, statistics, config, batch, cores)
    else:
        yield OPPONENTS[name](split, statistics, config, batch, cores)


def timed_rate(batches: Batches, batch: int, warm_up: int, timed: int) -> tuple[float, float]:
    """Return the images/s that an idle consumer gets from a loader in its steady state, and CPU-ms per image."""
    iterator = iter(batches)
    for images, labels in itertools.islice(iterator, warm_up):
        assert images.shape == (batch, 224, 224, 3) and images.dtype == torch.float32 and len(labels) == batch
    started, cpu = time.perf_counter(), cpu_seconds()
    received = sum(1 for _ in itertools.islice(iterator, timed))
    assert received == timed
    count = timed * batch
    return count / (time.perf_counter() - started), (cpu_seconds() - cpu) / count * 1000


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its live workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time
    return total


def shard_samples(folder: Path, copies: int = COPIES) -> Path:
    """Make a dataset folder of the 140 sample images, `copies` of each, with data_prep/."""
    if not SAMPLES.is_file():
        raise UserError(f"{SAMPLES} does not exist: give a dataset folder (of data_prep/shard_imagenet.py) instead")
    with tarfile.open(SAMPLES) as tar:
        tar.extractall(folder / "images")
    for image in sorted((folder / "images").rglob("*.*")):
        for copy in range(copies):
            place = folder / "source/train" / image.parent.name / f"{image.stem}_{copy}{image.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, place)
    places = [ROOT / "data_prep/shard_imagenet.py", folder / "source", folder / "dataset"]
    command = [sys.executable, *map(str, places), "--samples-per-shard", "70"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "dataset"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/loader.py\n  python bench/loader.py data/imagenet --threads 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", type=Path, help="dataset folder (default: the 140 sample images)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="default: one per available core")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024, help="images timed in each round (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS, metavar="LOADER")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        dataset = Dataset(options.dataset or shard_samples(Path(folder)))
        split, statistics, config = dataset.split("train"), dataset.statistics, AugmentConfig()
        loaders = {
            name: partial(opened, name, split, statistics, config, options.batch, options.threads)
            for name in options.loaders
        }
        # DataLoader's workers prefetch two batches each, which must be used up before the clock starts.
        rates, costs = in_turns(loaders, options, 2 * options.threads + 2, "loaders")
    medians = {name: averages.median(values) for name, values in rates.items()}
    cpu = {name: averages.median(values) for name, values in costs.items()}
    # The median over rounds of the ratio within a round, because a busy machine slows neighbours alike.
    ratios = {
        f"ours/{name}": averages.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        for name in rates
        if name != "ours" and "ours" in rates
    }
    rows = [
        (name, f"{medians[name]:,.0f}", f"{min(rates[name]):,.0f}", f"{max(rates[name]):,.0f}",
         f"{cpu[name]:.2f}", f"{ratios[f'ours/{name}']:.2f}" if f"ours/{name}" in ratios else "")
        for name in rates
    ]  # fmt: skip
    title = f"loaders, {options.threads} threads or workers, batch {options.batch}, {options.rounds} rounds"
    print_table(title, ("loader", "images/s, median", "lowest", "highest", "CPU-ms/image", "ours / this"), rows)
    if options.json:
        figures = {"images_per_second": medians, "cpu_ms_per_image": cpu}
        setting = {"threads": options.threads, "cores": len(os.sched_getaffinity(0)), "rounds": options.rounds}
        print_json({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, **figures, **setting})


def in_turns(
    loaders: Mapping[str, Opener], options: argparse.Namespace, warm_up: int, what: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return images/s and CPU-ms per image of each loader, one value per round; the loaders take turns in a round.

    warm_up: batches that are taken before the clock starts. what: of them all, for the progress bar.
    """
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    costs: dict[str, list[float]] = {name: [] for name in loaders}
    timed = max(options.images // options.batch, 1)
    with Progress(options.rounds * len(rates), "rounds", what) as progress:
        for _ in range(options.rounds):
            for name, opener in loaders.items():
                with opener() as batches:
                    rate, cost = timed_rate(batches, options.batch, warm_up, timed)
                rates[name].append(rate)
                costs[name].append(cost)
                progress.advance(**{name: f"{rate:,.0f}/s"})
    return rates, costs


if __name__ == "__main__":
    run(main)
