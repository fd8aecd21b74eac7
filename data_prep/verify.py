"""Audits a finished dataset folder: counts, checksums, indices against tars, labels, the decoding of every image."""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin("verifying", "a dataset")

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.arguments import add_workers_option
from data_prep.assemble import MANIFEST_CHECKSUM, checksum_line
from data_prep.prepare import SHOWN, with_list
from data_prep.verify_shard import WORKER_MODULES, ShardCheck, check_shard, damage, unreadable
from data_prep.workers import run_tasks
from pipeline.base.checkout import DATA
from pipeline.base.command import UserError, run
from pipeline.base.parsing import CommandParser
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import MANIFEST, STATISTICS, Dataset, SplitInfo, Statistics
from pipeline.data.sample_table import UNLABELLED

DEFAULT_DATASET = Path(DATA)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The numbers of samples and shards by split, and a sentence for every fault, which names its place."""

    samples: dict[str, int]
    shards: dict[str, int]
    problems: tuple[str, ...]


def verify(folder: Path, *, fast: bool, workers: int) -> Audit:
    """Audit a dataset folder; `fast` skips the decoding. Raises UserError if there is no manifest."""
    if (folder / MANIFEST).is_file() and (problem := check_manifest(folder)):
        return Audit(samples={}, shards={}, problems=(problem,))  # nothing in a damaged manifest can be relied on
    dataset = Dataset(folder)
    splits = dataset.manifest.splits
    problems = [*check_statistics(dataset), *check_files(dataset)]
    checks: list[ShardCheck] = []
    for name, split in splits.items():
        table_problems = list(check_table(dataset, name, split))
        problems += table_problems
        if not table_problems:
            checks += shard_checks(dataset, name, split, fast)
    results = run_tasks(
        check_shard,
        checks,
        workers=workers,
        total=sum(len(check.rows) for check in checks),
        description="verifying",
        preload=WORKER_MODULES,
    )
    problems += sorted(problem for shard_problems in results for problem in shard_problems)
    return Audit(
        samples={name: split.samples for name, split in splits.items()},
        shards={name: len(split.shards) for name, split in splits.items()},
        problems=tuple(problems),
    )


def check_manifest(folder: Path) -> str | None:
    manifest, checksum = folder / MANIFEST, folder / MANIFEST_CHECKSUM
    if not checksum.is_file():
        return f"{checksum} is missing"
    read = []
    for path in (manifest, checksum):
        try:
            read.append(path.read_bytes())
        except OSError as error:
            return unreadable(path, error)
    if checksum_line(hashlib.sha256(read[0]).hexdigest()) != read[1]:
        return f"{manifest} does not match {checksum.name}: one of them is damaged"
    return None


def check_files(dataset: Dataset) -> Iterator[str]:
    """Find files that the manifest does not list: a reader that takes every tar would read them."""
    known = {MANIFEST, MANIFEST_CHECKSUM, STATISTICS}
    for split in dataset.manifest.splits.values():
        known.add(split.table)
        for shard in split.shards:
            known |= {shard.file, shard.file.removesuffix(".tar") + ".idx"}
    for path in sorted(dataset.folder.rglob("*")):
        name = path.relative_to(dataset.folder).as_posix()
        if path.is_file() and name not in known and not name.startswith(".partial/"):
            yield f"{path} is not in the manifest"


def check_statistics(dataset: Dataset) -> Iterator[str]:
    path, described = dataset.folder / STATISTICS, dataset.manifest.statistics
    if described is None:
        return
    if problem := damage(path, described["sha256"]):
        yield problem
        return
    try:
        yield from implausible_statistics(path, dataset.statistics, described["size"])
    except UserError as error:
        yield str(error)


def implausible_statistics(path: Path, statistics: Statistics, size: int) -> Iterator[str]:
    mean, values, vectors = statistics.mean_image, statistics.eigenvalues, statistics.eigenvectors
    if mean.shape != (size, size, 3) or mean.min() < 0 or mean.max() > 255:
        yield f"{path}: the mean image is not {size} x {size} x 3 within 0..255"
    if not np.allclose(vectors.T @ vectors, np.eye(3)) or (values < -1e-12).any():
        yield f"{path}: the eigenvectors are no basis or an eigenvalue is negative"


def check_table(dataset: Dataset, name: str, split: SplitInfo) -> Iterator[str]:
    """Check the sample table against the manifest: what a reader checks when it opens it, then counts, labels, keys."""
    path = dataset.folder / split.table
    try:
        table = dataset.split(name).samples
    except UserError as error:
        yield str(error)
        return
    if sum(shard.samples for shard in split.shards) != split.samples:
        yield f"{path}: the shards' samples do not add up to the split's {split.samples:,}"
    counts = np.bincount(table["shard"], minlength=len(split.shards)).tolist()
    if counts != [shard.samples for shard in split.shards]:
        yield f"{path}: the numbers of rows of the shards are not those in the manifest"
    labels = table["label"]
    if (labels != UNLABELLED).any() and (labels == UNLABELLED).any():
        yield f"{path}: some samples have a label, others have none"
    if len(np.unique(table["key"])) != len(table):
        yield f"{path}: two samples have the same key"


def shard_checks(dataset: Dataset, name: str, split: SplitInfo, fast: bool) -> Iterator[ShardCheck]:
    table = dataset.split(name).samples
    wnids = tuple(info.wnid for info in dataset.manifest.classes)
    ends = np.cumsum([shard.samples for shard in split.shards])
    for number, (shard, end) in enumerate(zip(split.shards, ends.tolist(), strict=True)):
        rows = np.array(table[end - shard.samples : end])
        yield ShardCheck(path=dataset.folder / shard.file, info=shard, number=number, rows=rows, wnids=wnids, fast=fast)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        "Audit a dataset folder: counts, checksums, indices against tars, labels, the decoding of every image.",
        "python data_prep/verify.py data/imagenet",
    )
    parser.add_argument(
        "dataset",
        type=Path,
        nargs="?",
        default=DEFAULT_DATASET,
        metavar="DATASET",
        help="the dataset folder (default: %(default)s)",
    )
    parser.add_argument("--fast", action="store_true", help="do not decode the images")
    add_workers_option(parser)
    parser.add_json_option()
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise UserError("--workers must be at least 1")
    print(f"auditing {options.dataset}", file=sys.stderr)
    audit = verify(options.dataset, fast=options.fast, workers=options.workers)
    rows = [(name, f"{count:,}", f"{audit.shards[name]:,}") for name, count in audit.samples.items()]
    print_table("verified" if not audit.problems else "damaged", ("split", "images", "shards"), rows)
    if options.json:
        print_json({"samples": audit.samples, "shards": audit.shards, "problems": list(audit.problems[:SHOWN])})
    if audit.problems:
        faults = "1 fault" if len(audit.problems) == 1 else f"{len(audit.problems):,} faults"
        heading = f"{options.dataset} is damaged ({faults}): copy it again, or remove it and prepare it again"
        raise UserError(with_list(heading, audit.problems))
    how = "not decoded" if options.fast else "each decoded"
    print(f"{options.dataset} is whole: {sum(audit.samples.values()):,} images, {how}")


if __name__ == "__main__":
    run(main)
