"""Makes a dataset folder from listed images: the part that all preparing commands share."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any

from data_prep.assemble import MANIFEST_CHECKSUM, table_name, write_dataset
from data_prep.plan import Settings, SplitOrder, bytes_needed, order_split, preparation, shard_files, shard_tasks
from data_prep.record import RECORDS
from data_prep.shard import WORKER_MODULES, ShardTask, Unreadable, UnreadableImagesError, is_finished, make_shard
from data_prep.sources import Listing
from data_prep.workers import Advance, run_tasks
from data_prep.workspace import PARTIAL, check_destination, locked_workspace, publish, recover, writing_into
from pipeline.base.command import UserError
from pipeline.base.output import shown
from pipeline.data.dataset import MANIFEST, STATISTICS, ClassInfo, Dataset

SHOWN = 20  # lines of a long list that are printed


def prepare(
    listings: dict[str, Listing], classes: tuple[ClassInfo, ...], destination: Path, settings: Settings
) -> bool:
    """Make the dataset folder `destination` of the listed splits ("train" and others); `classes` are in label order.

    Return whether the dataset existed before. Raises UserError if the destination is taken or in use, a class is unknown or
    images do not decode.
    """
    settings.check()
    check_destination(destination)
    wnids = tuple(info.wnid for info in classes)
    orders = [order_split(split, listing, wnids, settings.seed) for split, listing in listings.items()]
    prepared = preparation(orders, settings)
    already = already_prepared(destination, prepared, classes)
    if not already or (destination / PARTIAL).exists():  # or the last run was interrupted while it cleaned up
        with writing_into(destination), locked_workspace(destination) as workspace:
            already = already_prepared(destination, prepared, classes)  # by the process that held the lock until now
            if not already:
                published = published_names(orders)
                recover(destination, workspace, published, tars_and_indices(orders, settings))
                check_free_disk(workspace, orders, settings)
                make_shards(orders, workspace, settings)
                write_dataset(orders, classes, workspace, settings, prepared)
                publish(destination, workspace, published)
            shutil.rmtree(workspace)
    return already


def already_prepared(destination: Path, prepared: dict[str, Any], classes: tuple[ClassInfo, ...]) -> bool:
    """Return whether `destination` is already the dataset to make. Raises UserError if it is another dataset."""
    if not (destination / MANIFEST).exists():
        return False
    manifest = Dataset(destination).manifest
    existing = manifest.notes.get("preparation", {})
    different = [key.removesuffix("_sha256") for key, value in prepared.items() if existing.get(key) != value]
    if manifest.classes != classes:
        different.append("classes, class names or ids")
    if different:
        raise UserError(
            f"the destination {destination} already holds a dataset, with other {' and '.join(different)}: "
            "give another folder or remove this one"
        )
    return True


def check_free_disk(workspace: Path, orders: list[SplitOrder], settings: Settings) -> None:
    """Raise UserError if the dataset will not fit. If images are shrunk, its size is not known before, nor checked."""
    if settings.rules.max_short_side is not None:
        return
    written = sum(path.stat().st_size for path in workspace.rglob("*") if path.is_file())
    needed, free = bytes_needed(orders, settings) - written, shutil.disk_usage(workspace).free
    if needed > free:
        raise UserError(
            f"the dataset needs {needed / 1e9:,.2f} GB and the disk of {workspace.parent} has {free / 1e9:,.2f} GB "
            "free: free some space or give a folder on another disk"
        )


def published_names(orders: list[SplitOrder]) -> list[str]:
    """Return the names in a dataset folder, in the order in which they are moved there: the manifest last."""
    splits = [name for order in orders for name in (order.name, table_name(order.name))]
    return [*splits, STATISTICS, MANIFEST_CHECKSUM, MANIFEST]


def tars_and_indices(orders: list[SplitOrder], settings: Settings) -> set[str]:
    """Return the tars and indices of every split, relative to the dataset folder."""
    tars = [file for order in orders for file in shard_files(order, settings)]
    return {*tars, *(tar.removesuffix(".tar") + ".idx" for tar in tars)}


def make_shards(orders: list[SplitOrder], workspace: Path, settings: Settings) -> None:
    """Make every shard of every split. Raises a UserError that lists the images that do not decode."""
    for order in orders:
        (workspace / order.name).mkdir(exist_ok=True)
        (workspace / RECORDS / order.name).mkdir(parents=True, exist_ok=True)
    results = run_tasks(
        bind(shard_or_unreadable, workspace),
        (task for order in orders for task in shard_tasks(order, settings)),
        workers=settings.workers,
        total=sum(len(order) for order in orders),
        description="preparing",
        preload=WORKER_MODULES,
    )
    unreadable = sorted(image for images in results for image in images)
    if unreadable:
        noun = "image does" if len(unreadable) == 1 else "images do"
        remedy = "replace or remove them and start again, or leave them out with --skip-corrupt"
        heading = f"{len(unreadable):,} {noun} not decode: {remedy}"
        raise UserError(with_list(heading, [f"{image.name}: {image.reason}" for image in unreadable]))


def shard_or_unreadable(workspace: Path, task: ShardTask, advance: Advance) -> tuple[Unreadable, ...]:
    """Make the shard of a task in a worker; return the images that prevented it."""
    try:
        if is_finished(task, workspace):
            advance(len(task.images), sum(image.size for image in task.images))
        else:
            make_shard(task, workspace, advance)
    except UnreadableImagesError as error:
        return error.images
    return ()


def with_list(heading: str, lines: Sequence[str]) -> str:
    """Return a message: the heading, below it the first SHOWN lines, as one line each, and the number of the others."""
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n  ".join([heading, *map(shown, lines[:SHOWN]), *more])
