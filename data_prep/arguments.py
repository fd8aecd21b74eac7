"""What the commands that prepare datasets share: options, and the result that they print."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.hold_out import OPTION, amount
from data_prep.image_statistics import StatisticsPlan
from data_prep.images import ImageRules
from data_prep.plan import Settings
from data_prep.prepare import prepare
from data_prep.sources import Listing
from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.base.parsing import CommandParser
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import MANIFEST, ClassInfo, Dataset

USUAL = {"JPEG", "PNG"}  # kinds of images that need no word


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a command reads and writes when its user names no folders: below the checkout, as configs/ has it.

    missing: a sentence on what to put into `source`, for users who have nothing there.
    """

    source: Path
    destination: Path
    missing: str


def add_preparing_options(parser: CommandParser, name: str, source: str, places: Places) -> None:
    """Add the arguments of every such command. name: of the dataset; source: help text."""
    defaults = Settings()
    parser.add_argument("source", type=Path, nargs="?", metavar="SOURCE", help=f"{source} (default: {places.source})")
    parser.add_argument(
        "destination",
        type=Path,
        nargs="?",
        metavar="DESTINATION",
        help=f"the dataset folder to make (default: {places.destination})",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the training split's shuffle (default 0)")
    parser.add_argument("--name", default=name, help=f"begins the shards' file names (default {name})")
    parser.add_argument(
        "--samples-per-shard", type=int, default=defaults.samples_per_shard, metavar="N", help="default 1000"
    )
    add_workers_option(parser)
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="leave out images that do not decode; the manifest lists them"
    )
    parser.add_json_option()


def add_hold_out_option(parser: CommandParser, more: str) -> None:
    """Add --hold-out. more: rest of its help text."""
    parser.add_argument(
        OPTION,
        type=amount,
        metavar="SHARE|N",
        help=f"training images become val: a share of every class (0.1), or N of all, drawn by --seed; {more}",
    )


def add_workers_option(parser: CommandParser) -> None:
    cores = available_cores()
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="default: one per available core")


def make_dataset(
    listings: dict[str, Listing],
    classes: tuple[ClassInfo, ...],
    statistics: StatisticsPlan,
    rules: ImageRules,
    args: argparse.Namespace,
) -> None:
    """Prepare the dataset, with the options of `add_preparing_options`, and print what was made."""
    settings = Settings(
        name=args.name,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        statistics=statistics,
        rules=rules,
        skip_corrupt=args.skip_corrupt,
        workers=args.workers,
    )
    for split, listing in listings.items():
        print(f"{split}: {described(listing)}", file=sys.stderr)
    started = time.monotonic()
    already = prepare(listings, classes, args.destination, settings)
    seconds, size = time.monotonic() - started, sum(listing.bytes for listing in listings.values())
    print_result(args.destination, already, seconds, size, args.json)


def described(listing: Listing) -> str:
    """How many images a split has, of which kinds where not all are JPEGs and PNGs, where, and what was passed over."""
    kinds = listing.kinds
    counts = (
        f" ({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())})" if kinds.keys() - USUAL else ""
    )
    passed_over = f"; passed over: {', '.join(map(str, listing.passed_over))}" if listing.passed_over else ""
    return f"{len(listing):,} images{counts}, {listing.kind}{passed_over}"


def settle_places(args: argparse.Namespace, places: Places) -> None:
    """Fill in the folders that were not named, and say which they are. Raises UserError where a default source is missing."""
    if args.source is None and not places.source.exists():
        raise UserError(f"no SOURCE was named, and there is no {places.source} here: {places.missing}")
    if args.source is None or args.destination is None:
        args.source, args.destination = args.source or places.source, args.destination or places.destination
        print(f"reading {args.source}, making {args.destination}", file=sys.stderr)


def count_or_all(text: str) -> int | None:
    """Parse a number of images; None for 'all'."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of images nor 'all'") from None


def add_statistics_options(parser: argparse.ArgumentParser) -> None:
    plan = StatisticsPlan()
    parser.add_argument(
        "--statistics-size", type=int, default=plan.size, metavar="PIXELS", help="side of the mean image (default 224)"
    )
    parser.add_argument(
        "--statistics-short-side",
        type=int,
        default=plan.short_side,
        metavar="PIXELS",
        help="shorter side of the images before the centre crop of the mean image (default 256)",
    )
    parser.add_argument(
        "--statistics-images",
        type=count_or_all,
        metavar="N|all",
        help="training images for the mean image and the covariance: a seeded sample of N, or all (default)",
    )


def print_result(destination: Path, already: bool, seconds: float, source_bytes: int, as_json: bool) -> None:
    """Print what was made: a table, and with `as_json` the same figures. already: whether the dataset existed before."""
    dataset = Dataset(destination)
    manifest, notes = dataset.manifest, dataset.manifest.notes
    rows, splits = [], {}
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        rows.append((name, f"{split.samples:,}", f"{len(split.shards):,}", f"{size / 1e6:,.1f}"))
        splits[name] = {"samples": split.samples, "shards": len(split.shards), "bytes": size}
    samples = sum(split.samples for split in manifest.splits.values())
    changed, left_out = (sum(map(len, notes.get(kind, {}).values())) for kind in ("changed", "left_out"))
    figures = {
        "dataset": str(destination),
        "already": already,
        "classes": len(manifest.classes),
        "splits": splits,
        "changed": changed,
        "left_out": left_out,
        "shrunk": sum(notes.get("shrunk", {}).values()),
        "seconds": round(seconds, 3),
        "images_per_second": round(samples / seconds, 1),
        "megabytes_per_second": round(source_bytes / 1e6 / seconds, 2),
        "manifest_sha256": dataset.sha256,
    }
    print_table("dataset", ("split", "images", "shards", "MB"), rows)
    if already:
        print(f"already done: {destination} holds exactly this dataset")
    else:
        rates = f"{figures['images_per_second']:,} images/s, {figures['megabytes_per_second']:,} MB/s"
        print(f"made {destination} ({len(manifest.classes):,} classes) in {seconds:,.1f} s: {rates}")
    why = Counter(one["change"] for entries in notes.get("changed", {}).values() for one in entries).most_common()
    reasons = f" ({', '.join(f'{count:,} {reason}' for reason, count in why)})"
    for count, what in ((changed, f"re-encoded{reasons}"), (left_out, "left out")):
        if count:
            print(f"{count:,} images were {what}: {MANIFEST} lists them under notes")
    if as_json:
        print_json(figures)
