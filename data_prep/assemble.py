"""Writes sample tables, statistics and manifest of a dataset folder from the shards' records."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.image_statistics import PixelSums
from data_prep.plan import Settings, SplitOrder, shard_files
from data_prep.record import read_record, record_path
from pipeline.base.command import UserError
from pipeline.base.files import replacing
from pipeline.data.dataset import MANIFEST, STATISTICS, ClassInfo, Manifest, ShardInfo, SplitInfo
from pipeline.data.sample_table import sample_dtype

# In the format of sha256sum. The manifest holds the hash of every other file; this file holds the manifest's.
MANIFEST_CHECKSUM = f"{MANIFEST}.sha256"


def table_name(split: str) -> str:
    return f"{split}.samples.npy"


def checksum_line(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()


def write_dataset(
    orders: list[SplitOrder],
    classes: tuple[ClassInfo, ...],
    workspace: Path,
    settings: Settings,
    prepared: dict[str, Any],
) -> None:
    """Write the sample tables, the statistics and the manifest from the shards' records."""
    splits: dict[str, SplitInfo] = {}
    sums = PixelSums(settings.statistics.size)
    notes: dict[str, Any] = {"preparation": prepared}
    for order in orders:
        splits[order.name], split_notes = assemble_split(order, workspace, settings, sums)
        for kind, entries in split_notes.items():
            notes.setdefault(kind, {})[order.name] = entries
    described = write_statistics(workspace / STATISTICS, sums, settings)
    manifest = Manifest(seed=settings.seed, classes=classes, splits=splits, statistics=described, notes=notes)
    text = manifest.to_json().encode()
    digest = write_hashed(workspace / MANIFEST, lambda file: file.write(text))
    write_hashed(workspace / MANIFEST_CHECKSUM, lambda file: file.write(checksum_line(digest)))


def write_statistics(path: Path, sums: PixelSums, settings: Settings) -> dict[str, Any]:
    """Write the statistics; return their entry for the manifest."""
    if sums.images == 0:
        raise UserError("no image of the training split decodes: check the source")
    statistics, plan = sums.statistics(), settings.statistics
    return {
        "size": plan.size,
        "short_side": plan.short_side,
        "images": sums.images,
        "of": "all training images" if plan.images is None else "the first of the shuffled training split",
        "sha256": write_hashed(path, lambda file: np.savez(file, **vars(statistics))),
    }


def assemble_split(
    order: SplitOrder, workspace: Path, settings: Settings, sums: PixelSums
) -> tuple[SplitInfo, dict[str, Any]]:
    """Write the split's table from the records; return its manifest entry and its notes. Its pixel sums go into `sums`."""
    shards: list[ShardInfo] = []
    tables, changed, left_out, shrunk = [], [], [], 0
    for file in shard_files(order, settings):
        record = read_record(record_path(workspace, file))
        facts = record.facts
        changed += [{"key": key, "change": why} for key, why in facts.changed]
        left_out += [{"key": key, "reason": why} for key, why in facts.left_out]
        shrunk += facts.shrunk
        if len(record.rows) == 0:  # every image was left out: DALI cannot read an empty shard
            for path in (workspace / file, (workspace / file).with_suffix(".idx")):
                path.unlink()
            continue
        record.rows["shard"] = len(shards)
        tables.append(record.rows)
        hashes = {"sha256": facts.sha256, "index_sha256": facts.index_sha256}
        shards.append(ShardInfo(file=file, samples=len(record.rows), bytes=facts.bytes, **hashes))
        if record.sums:
            sums.merge(record.sums.images, record.sums.pixels, record.sums.products)
    if not tables:
        raise UserError(f"no image of the {order.name} split decodes: check the source")
    width = max(table.dtype["key"].itemsize for table in tables)
    table = np.concatenate([rows.astype(sample_dtype(width)) for rows in tables])
    digest = write_hashed(workspace / table_name(order.name), lambda file: np.save(file, table))
    info = SplitInfo(samples=len(table), table=table_name(order.name), table_sha256=digest, shards=tuple(shards))
    notes = {"changed": changed, "left_out": left_out, "shrunk": shrunk}
    return info, {kind: entries for kind, entries in notes.items() if entries}


def write_hashed(path: Path, write: Callable[[io.BytesIO], Any]) -> str:
    """Write a file, whole or not at all; return its SHA-256."""
    buffer = io.BytesIO()
    write(buffer)
    with replacing(path) as file:
        file.write(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
