"""From listed images to a dataset folder: what every preparing command does once it knows its source."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any

from data_prep.assemble import MANIFEST_CHECKSUM, table_name, write_dataset
from data_prep.plan import (
    Settings,
    SplitPlan,
    bytes_needed,
    plan_split,
    preparation,
    shard_count,
    shard_file,
    shard_tasks,
)
from data_prep.record import RECORDS
from data_prep.shard import (
    WORKER_MODULES,
    ShardTask,
    Unreadable,
    UnreadableImagesError,
    is_finished,
    make_shard,
)
from data_prep.sources import Listing
from data_prep.workers import Advance, run_tasks
from data_prep.workspace import PARTIAL, check_destination, discard, locked_workspace, publish, recover
from pipeline.base.command import UserError
from pipeline.data.dataset import MANIFEST, STATISTICS, ClassInfo, Dataset

SHOWN = 20  # of a long list of images, these many are printed


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a preparation did: the finished dataset, and whether it was there before."""

    dataset: Dataset
    seconds: float
    already: bool
    source_bytes: int


def prepare(
    listings: dict[str, Listing], classes: tuple[ClassInfo, ...], destination: Path, settings: Settings
) -> Summary:
    """Make the dataset folder `destination` of the listed splits ("train" and others); `classes` in label order.

    Raises UserError where the destination is taken or in use, a class is unknown or images do not decode.
    """
    started = time.monotonic()
    settings.check()
    check_destination(destination)
    names = tuple(one.wnid for one in classes)
    plans = [plan_split(split, listing, names, settings.seed) for split, listing in listings.items()]
    prepared = preparation(plans, settings)
    source_bytes = sum(listing.bytes for listing in listings.values())
    already = already_prepared(destination, prepared, classes)
    if not already or (destination / PARTIAL).exists():  # or it was cut off while it tidied up
        with locked_workspace(destination) as workspace:
            already = already_prepared(destination, prepared, classes)  # by the process that held the lock until now
            if not already:
                published = published_names(plans)
                recover(destination, workspace, published, shard_files(plans, settings))
                check_free_disk(workspace, plans, settings)
                make_shards(plans, workspace, settings)
                write_dataset(plans, classes, workspace, settings, prepared)
                publish(destination, workspace, published)
            discard(workspace)
    seconds = time.monotonic() - started
    return Summary(dataset=Dataset(destination), seconds=seconds, already=already, source_bytes=source_bytes)


def already_prepared(destination: Path, prepared: dict[str, Any], classes: tuple[ClassInfo, ...]) -> bool:
    """Whether `destination` is the dataset that would be made. Raises UserError where it is another one."""
    if not (destination / MANIFEST).exists():
        return False
    manifest = Dataset(destination).manifest
    have = manifest.notes.get("preparation", {})
    names = {"images_sha256": "images"}
    different = [names.get(key, key) for key, value in prepared.items() if have.get(key) != value]
    if manifest.classes != classes:
        different.append("classes, class names or ids")
    if different:
        raise UserError(
            f"the destination {destination} already holds a dataset, with other {' and '.join(different)}: "
            "name another folder or remove this one"
        )
    return True


def check_free_disk(workspace: Path, plans: list[SplitPlan], settings: Settings) -> None:
    """Raise UserError where the dataset will not fit. Shrinking makes it smaller by what is not known before."""
    if settings.rules.max_short_side is not None:
        return
    have = sum(path.stat().st_size for path in workspace.rglob("*") if path.is_file())
    needed, free = bytes_needed(plans, settings) - have, shutil.disk_usage(workspace).free
    if needed > free:
        raise UserError(
            f"the dataset needs {needed / 1e9:,.2f} GB and the disk of {workspace.parent} has {free / 1e9:,.2f} GB "
            "free: free some space or name a folder on another disk"
        )


def published_names(plans: list[SplitPlan]) -> list[str]:
    """Everything in a dataset folder, in the order in which it is moved there: the manifest last."""
    splits = [name for plan in plans for name in (plan.name, table_name(plan.name))]
    return [*splits, STATISTICS, MANIFEST_CHECKSUM, MANIFEST]


def shard_files(plans: list[SplitPlan], settings: Settings) -> set[str]:
    """The tars and indices of every split, relative to the dataset folder."""
    tars = [shard_file(settings, plan.name, index) for plan in plans for index in range(shard_count(plan, settings))]
    return {*tars, *(tar.removesuffix(".tar") + ".idx" for tar in tars)}


def make_shards(plans: list[SplitPlan], workspace: Path, settings: Settings) -> None:
    """Make every shard of every split. Raises UserError that lists the images that do not decode."""
    for plan in plans:
        (workspace / plan.name).mkdir(exist_ok=True)
        (workspace / RECORDS / plan.name).mkdir(parents=True, exist_ok=True)
    results = run_tasks(
        bind(shard_or_unreadable, workspace),
        (task for plan in plans for task in shard_tasks(plan, settings)),
        workers=settings.workers,
        total=sum(len(plan) for plan in plans),
        description="preparing",
        preload=WORKER_MODULES,
    )
    unreadable = sorted(image for images in results for image in images)
    if unreadable:
        raise UserError(unreadable_message(unreadable))


def shard_or_unreadable(workspace: Path, task: ShardTask, advance: Advance) -> tuple[Unreadable, ...]:
    """What a worker does with a task: the images that kept the shard from being made."""
    try:
        if is_finished(task, workspace):
            advance(len(task.images), sum(image.size for image in task.images))
        else:
            make_shard(task, workspace, advance)
    except UnreadableImagesError as error:
        return error.images
    return ()


def unreadable_message(images: list[Unreadable]) -> str:
    lines = [f"  {image.name}: {image.reason}" for image in images[:SHOWN]]
    if len(images) > SHOWN:
        lines.append(f"  and {len(images) - SHOWN:,} more")
    noun = "image does" if len(images) == 1 else "images do"
    remedy = "replace or remove them and start again, or leave them out with --skip-corrupt"
    return "\n".join([f"{len(images):,} {noun} not decode: {remedy}", *lines])
