"""Makes a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.arguments import add_preparing_options, add_statistics_options, make_dataset
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.recognise import recognise
from pipeline.base.command import KEEPS, CommandParser, run
from pipeline.base.starting import begin


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "Make a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders.",
        "python data_prep/shard_imagenet.py /data/imagenet datasets/imagenet",
    )
    add_preparing_options(
        parser, name="imagenet", source="folder with class folders, the ILSVRC tars or Kaggle's ILSVRC/"
    )
    add_statistics_options(parser)
    parser.add_argument(
        "--max-short-side",
        type=int,
        metavar="PIXELS",
        help="shrink images to this shorter side if theirs is longer (default: shrink none)",
    )
    args = parser.parse_args(argv)
    statistics = StatisticsPlan(
        size=args.statistics_size, short_side=args.statistics_short_side, images=args.statistics_images
    )
    source = recognise(args.source)
    rules = ImageRules(max_short_side=args.max_short_side)
    make_dataset(source.listings, source.classes, statistics, rules, args)


if __name__ == "__main__":
    begin("preparing")
    run(main, KEEPS)
