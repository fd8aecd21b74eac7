"""Makes a dataset folder (WebDataset shards, index, sample table, statistics) of images in class folders."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.arguments import add_preparing_options, add_statistics_options, command_parser, report
from data_prep.image_statistics import StatisticsPlan
from data_prep.plan import TRAIN, Settings
from data_prep.prepare import prepare
from data_prep.sources import recognise
from pipeline.command import run
from pipeline.data.dataset import ClassInfo


def main(arguments: list[str] | None = None) -> None:
    parser = command_parser(
        "Make a dataset folder (WebDataset shards, index, sample table, statistics) of images in class folders.",
        "python data_prep/shard_imagenet.py /data/imagenet datasets/imagenet",
    )
    parser.add_argument(
        "source", type=Path, help="folder with train/CLASS/*.JPEG and, where it exists, val/CLASS/*.JPEG"
    )
    parser.add_argument("destination", type=Path, help="the dataset folder to make")
    add_preparing_options(parser, name="imagenet")
    add_statistics_options(parser)
    options = parser.parse_args(arguments)
    settings = Settings(
        name=options.name,
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
        statistics=StatisticsPlan(
            size=options.statistics_size,
            short_side=options.statistics_short_side,
            images=options.statistics_images,
        ),
        workers=options.workers,
    )
    listings = recognise(options.source)
    for split, listing in listings.items():
        passed_over = f", {listing.ignored:,} other files passed over" if listing.ignored else ""
        print(f"{split}: {len(listing):,} images, {listing.kind}{passed_over}", file=sys.stderr)
    classes = tuple(ClassInfo(wnid=name) for name in listings[TRAIN].classes)
    summary = prepare(listings, classes, options.destination, settings)
    report(summary, options.destination, options.json)


if __name__ == "__main__":
    run(main)
