"""Makes a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders."""

from __future__ import annotations

from data_prep.first_line import preparing_line
from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin(preparing_line)

from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import (
    Places,
    add_hold_out_option,
    add_preparing_options,
    add_statistics_options,
    make_dataset,
    settle_places,
)
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.recognise import recognise, with_val
from pipeline.base.checkout import DATA
from pipeline.base.command import KEEPS, run
from pipeline.base.parsing import CommandParser

PLACES = Places(
    source=Path("data/ilsvrc"),
    destination=Path(DATA),
    missing="put ImageNet's files there as they were downloaded (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's ILSVRC/ with LOC_val_solution.csv), or folders train/CLASS/ and val/CLASS/ of "
    "images, or link or name the folder that holds them",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "Make a dataset folder (WebDataset shards, index, sample table, statistics) from ImageNet's tars or class folders.",
        "python data_prep/shard_imagenet.py data/ilsvrc data/imagenet",
    )
    add_preparing_options(
        parser,
        name="imagenet",
        source="folder with class folders, the ILSVRC tars or Kaggle's ILSVRC/",
        places=PLACES,
    )
    add_statistics_options(parser)
    parser.add_argument(
        "--max-short-side",
        type=int,
        metavar="PIXELS",
        help="shrink images to this shorter side if theirs is longer (default: shrink none)",
    )
    add_hold_out_option(parser, "for a source without a val split")
    args = parser.parse_args(argv)
    statistics = StatisticsPlan(
        size=args.statistics_size, short_side=args.statistics_short_side, images=args.statistics_images
    )
    settle_places(args, PLACES)
    source = recognise(args.source, args.destination)
    listings = with_val(args.source, source.listings, args.hold_out, args.seed)
    rules = ImageRules(max_short_side=args.max_short_side)
    make_dataset(listings, source.classes, statistics, rules, args)


if __name__ == "__main__":
    run(main, KEEPS, kept=True)
