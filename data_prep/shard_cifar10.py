"""Makes a dataset folder of CIFAR-10, from its Python archive or from PNGs in class folders."""

from __future__ import annotations

from data_prep.first_line import preparing_line
from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin(preparing_line)

from collections.abc import Sequence
from pathlib import Path

from data_prep.arguments import Places, add_hold_out_option, add_preparing_options, make_dataset, settle_places
from data_prep.cifar import CLASSES, recognise, with_held_out
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from pipeline.base.command import KEEPS, run
from pipeline.base.parsing import CommandParser
from pipeline.data.dataset import ClassInfo

SIDE = 32  # pixels
PLACES = Places(
    source=Path("data/cifar-10-python.tar.gz"),
    destination=Path("data/cifar10"),
    missing="put the Python archive of CIFAR-10 there (from www.cs.toronto.edu/~kriz/cifar.html), or name it, or a folder with "
    "train/CLASS/ and test/CLASS/ of PNGs",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        "Make a dataset folder of CIFAR-10, from its Python archive or from PNGs in class folders.",
        "python data_prep/shard_cifar10.py data/cifar-10-python.tar.gz data/cifar10",
    )
    add_preparing_options(
        parser,
        name="cifar10",
        source="cifar-10-python.tar.gz, or a folder with train/CLASS/ and test/CLASS/",
        places=PLACES,
    )
    add_hold_out_option(parser, "CIFAR's test images become the split test; 5000 in the paper")
    args = parser.parse_args(argv)
    settle_places(args, PLACES)
    # Paper, section 4.2: the per-pixel mean of the 32 x 32 images.
    statistics = StatisticsPlan(size=SIDE, short_side=None)
    classes = tuple(ClassInfo(wnid=name, name=name) for name in CLASSES)
    with recognise(args.source) as listings:
        if args.hold_out is not None:
            listings = with_held_out(listings, args.hold_out, args.seed)
        make_dataset(listings, classes, statistics, ImageRules(exact_side=SIDE), args)


if __name__ == "__main__":
    run(main, KEEPS, kept=True)
