"""Makes a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders."""

from __future__ import annotations

from pathlib import Path

from data_prep.arguments import add_preparing_options, add_statistics_options, print_recognised, report
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.plan import Settings
from data_prep.prepare import prepare
from data_prep.recognise import recognise
from pipeline.base.command import CommandParser, run


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        "Make a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders.",
        "python data_prep/shard_imagenet.py /data/imagenet datasets/imagenet",
    )
    parser.add_argument("source", type=Path, help="folder with class folders, the ILSVRC tars or Kaggle's ILSVRC/")
    parser.add_argument("destination", type=Path, help="the dataset folder to make")
    add_preparing_options(parser, name="imagenet")
    add_statistics_options(parser)
    parser.add_argument(
        "--max-short-side",
        type=int,
        metavar="PIXELS",
        help="shrink images to this shorter side if theirs is longer (default: shrink none)",
    )
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
        rules=ImageRules(max_short_side=options.max_short_side),
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )
    source = recognise(options.source)
    print_recognised(source.listings)
    summary = prepare(source.listings, source.classes, options.destination, settings)
    report(summary, options.destination, options.json)


if __name__ == "__main__":
    run(main)
