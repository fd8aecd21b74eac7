"""Makes a dataset folder of CIFAR-10, from its Python archive or from PNGs in class folders."""

from __future__ import annotations

from pathlib import Path

from data_prep.arguments import add_preparing_options, print_recognised, report
from data_prep.cifar import CLASSES, hold_out, recognise
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.plan import Settings
from data_prep.prepare import prepare
from pipeline.base.command import CommandParser, run
from pipeline.data.dataset import ClassInfo

SIDE = 32  # pixels


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        "Make a dataset folder of CIFAR-10, from its Python archive or from PNGs in class folders.",
        "python data_prep/shard_cifar10.py cifar-10-python.tar.gz datasets/cifar10",
    )
    parser.add_argument(
        "source", type=Path, help="cifar-10-python.tar.gz, or a folder with train/CLASS/ and test/CLASS/"
    )
    parser.add_argument("destination", type=Path, help="the dataset folder to make")
    add_preparing_options(parser, name="cifar10")
    parser.add_argument(
        "--hold-out",
        type=int,
        metavar="N",
        help="N training images, drawn by --seed, become val, and CIFAR's test images the split test; 5000 in the paper",
    )
    options = parser.parse_args(arguments)
    settings = Settings(
        name=options.name,
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
        # Paper, section 4.2: the per-pixel mean of the 32 x 32 training images.
        statistics=StatisticsPlan(size=SIDE, short_side=None),
        rules=ImageRules(exact_side=SIDE),
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )
    classes = tuple(ClassInfo(wnid=name, name=name) for name in CLASSES)
    with recognise(options.source) as listings:
        if options.hold_out is not None:
            listings = hold_out(listings, options.hold_out, options.seed)
        print_recognised(listings)
        summary = prepare(listings, classes, options.destination, settings)
    report(summary, options.destination, options.json)


if __name__ == "__main__":
    run(main)
