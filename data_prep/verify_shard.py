"""Audits one shard in one worker: its bytes, its index, its rows of the sample table, its images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from data_prep.images import UnreadableImageError, decode
from data_prep.order import MAX_KEY, NOT_IN_KEY
from data_prep.tars import members, open_for_ranges
from data_prep.workers import Advance
from pipeline.base.command import UserError
from pipeline.base.files import file_sha256
from pipeline.data.dataset import UNLABELLED, ShardInfo


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """One shard: its path, its manifest entry, its number in the split, and its rows of the sample table."""

    path: Path
    info: ShardInfo
    number: int
    rows: NDArray[Any]
    wnids: tuple[str, ...]
    fast: bool


def check_shard(check: ShardCheck, advance: Advance) -> list[str]:
    """Return a sentence for every fault of one shard, which names its place."""
    if problems := list(check_checksums(check)):
        advance(len(check.rows), check.info.bytes)
        return problems
    with open_for_ranges(check.path) as (descriptor, size):
        try:
            problems += check_members(check, descriptor, size)
        except UserError as error:
            problems.append(str(error))
        if check.fast:
            advance(len(check.rows), check.info.bytes)
        else:
            problems += check_images(check, descriptor, advance)
    return problems


def check_checksums(check: ShardCheck) -> Iterator[str]:
    index = check.path.with_suffix(".idx")
    for path, digest in ((check.path, check.info.sha256), (index, check.info.index_sha256)):
        if not path.is_file():
            yield f"{path} is missing"
        elif path == check.path and path.stat().st_size != check.info.bytes:
            yield f"{path} has {path.stat().st_size:,} bytes, but the manifest says {check.info.bytes:,}"
        elif file_sha256(path) != digest:
            yield f"{path} does not match the SHA-256 in the manifest"


def check_members(check: ShardCheck, descriptor: int, size: int) -> Iterator[str]:
    """Check the tar's members against the sample table and the index, and the labels in the tar against the table's."""
    places = {
        member.name: (member.offset, member.size)
        for member in members(descriptor, 0, size, str(check.path), marked=True)
    }
    indexed = read_index(check.path.with_suffix(".idx"))
    if indexed != places:
        yield f"{check.path.with_suffix('.idx')} is not the index of its tar"
    if len(places) != 2 * len(check.rows):
        yield f"{check.path} holds {len(places):,} files, but its {len(check.rows):,} samples should have two each"
    if (check.rows["shard"] != check.number).any():
        yield f"{check.path}: some of its rows in the sample table name another shard"
    for row in check.rows:
        key, label = row["key"].decode(), int(row["label"])
        place = (int(row["offset"]), int(row["size"]))
        if place not in (places.get(f"{key}.jpg"), places.get(f"{key}.png")):
            yield f"{check.path}: the image of {key} is not where the sample table says"
        offset, length = places.get(f"{key}.cls", (0, 0))
        if os.pread(descriptor, length, offset) != str(label).encode():
            yield f"{check.path}: {key}.cls is not the sample table's label {label}"
        if label != UNLABELLED and not has_class(key, check.wnids[label]):
            yield f"{check.path}: {key} has the label of {check.wnids[label]}"


def has_class(key: str, wnid: str) -> bool:
    """Return whether a key begins with the name of its class; of a long name only the first MAX_KEY / 2 characters count."""
    prefix = f"{NOT_IN_KEY.sub('-', wnid)}_"[: MAX_KEY // 2]
    return key.startswith(prefix)


def read_index(path: Path) -> dict[str, tuple[int, int]] | None:
    """Read the members of a DALI index: name -> (offset, size); None if the file is no index."""
    try:
        head, *lines = path.read_text(encoding="ascii").splitlines()
        if head != f"v1.2 {len(lines)}":
            return None
        fields = [line.split(" ") for line in lines]
        return {
            part[start + 3]: (int(part[start + 1]), int(part[start + 2]))
            for part in fields
            for start in range(0, len(part), 4)
        }
    except (ValueError, IndexError):
        return None


def check_images(check: ShardCheck, descriptor: int, advance: Advance) -> Iterator[str]:
    for row in check.rows:
        data = os.pread(descriptor, int(row["size"]), int(row["offset"]))
        try:
            image = decode(data)
            if (image.height, image.width) != (int(row["height"]), int(row["width"])):
                yield f"{check.path}: {row['key'].decode()} does not have the sample table's height and width"
        except UnreadableImageError as error:
            yield f"{check.path}: {row['key'].decode()} does not decode: {error}"
        advance(1, len(data))
