"""Compares what each augmentation costs: the loader's CPU time per image with it, over that of the paper's augmentation."""

from __future__ import annotations

import argparse
import statistics as averages
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.loader import in_turns, opened, shard_samples  # noqa: E402
from pipeline.base.command import run  # noqa: E402
from pipeline.base.cores import available_cores  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.augment import AugmentConfig  # noqa: E402
from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.data.erasing import EraseConfig  # noqa: E402
from pipeline.data.rand_augment import RandAugmentConfig  # noqa: E402

PAPER = "scale-crop"
WARM_UP = 4  # batches
RAND_AUGMENT = RandAugmentConfig(operations=2, magnitude=6.0, deviation=0.5, probability=0.5)
AUGMENTATIONS = {
    PAPER: AugmentConfig(),
    "scale-crop, RandAugment": AugmentConfig(rand_augment=RAND_AUGMENT),
    "scale-crop, erasing": AugmentConfig(erase=EraseConfig(probability=0.25)),
    "area-crop": AugmentConfig(kind="area-crop"),
    "area-crop, RandAugment, erasing": AugmentConfig(
        kind="area-crop", rand_augment=RAND_AUGMENT, erase=EraseConfig(probability=0.25)
    ),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/augmentations.py\n  python bench/augmentations.py data/imagenet --threads 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", type=Path, help="dataset folder (default: the 140 sample images)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: one per available core")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024, help="images timed in each round (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-augmentations-") as folder:
        dataset = Dataset(options.dataset or shard_samples(Path(folder)))
        split, batch, threads = dataset.split("train"), options.batch, options.threads
        loaders = {
            name: partial(opened, "ours", split, dataset.statistics, augment, batch, threads)
            for name, augment in AUGMENTATIONS.items()
        }
        rates, costs = in_turns(loaders, options, WARM_UP, "augmentations")
    # The median over rounds of the ratio within a round, because a busy machine slows neighbours alike.
    ratios = {
        name: averages.median(one / paper for one, paper in zip(costs[name], costs[PAPER], strict=True))
        for name in costs
    }
    rows = [
        (name, f"{averages.median(costs[name]):.2f}", f"{ratios[name]:.2f}", f"{averages.median(rates[name]):,.0f}")
        for name in costs
    ]
    title = f"augmentations, {options.threads} threads, batch {options.batch}, {options.rounds} rounds"
    print_table(title, ("augmentation", "CPU-ms/image", f"over {PAPER}", "images/s"), rows)
    if options.json:
        print_json(
            {"cpu_ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, "threads": options.threads}
        )


if __name__ == "__main__":
    run(main)
