"""Audits one shard in one worker: its bytes, its index, its rows of the sample table, its images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from data_prep.order import MAX_KEY, NOT_IN_KEY
from data_prep.tars import members, open_for_ranges
from data_prep.workers import Advance
from pipeline.base.command import UserError
from pipeline.base.files import file_sha256
from pipeline.data.dataset import ShardInfo
from pipeline.data.images import UnreadableImageError, decode
from pipeline.data.sample_table import UNLABELLED

WORKER_MODULES = ["data_prep.verify_shard", "pipeline.data.whole"]  # imported once, before the workers are forked


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
    try:
        with open_for_ranges(check.path) as (descriptor, size):
            try:
                problems += check_members(check, descriptor, size)
            except UserError as error:
                problems.append(str(error))
            if check.fast:
                advance(len(check.rows), check.info.bytes)
            else:
                problems += check_images(check, descriptor, advance)
    except OSError as error:
        problems.append(unreadable(check.path, error))
    return problems


def unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror})"


def damage(path: Path, sha256: str) -> str | None:
    """Return what is wrong with a file that should have this SHA-256; None if nothing is."""
    if not path.is_file():
        return f"{path} is missing"
    try:
        return None if file_sha256(path) == sha256 else f"{path} does not match the SHA-256 in the manifest"
    except OSError as error:
        return unreadable(path, error)


def check_checksums(check: ShardCheck) -> Iterator[str]:
    path, info = check.path, check.info
    if path.is_file() and (size := path.stat().st_size) != info.bytes:
        yield f"{path} has {size:,} bytes, but the manifest says {info.bytes:,}"
    elif problem := damage(path, info.sha256):
        yield problem
    if problem := damage(path.with_suffix(".idx"), info.index_sha256):
        yield problem


def check_members(check: ShardCheck, descriptor: int, size: int) -> Iterator[str]:
    """Check the tar's members against the sample table and the index, and the labels in the tar against the table's."""
    listed = members(descriptor, 0, size, str(check.path), marked=True)
    places = {member.name: (member.offset, member.size) for member in listed}
    if read_index(check.path.with_suffix(".idx")) != places:
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
        parts = [line.split(" ") for line in lines]
        return {part[i + 3]: (int(part[i + 1]), int(part[i + 2])) for part in parts for i in range(0, len(part), 4)}
    except (ValueError, IndexError):
        return None


def check_images(check: ShardCheck, descriptor: int, advance: Advance) -> Iterator[str]:
    from pipeline.data.whole import decoded_size  # only workers import DALI, before they are forked: WORKER_MODULES

    for row in check.rows:
        data = os.pread(descriptor, int(row["size"]), int(row["offset"]))
        try:
            if decoded_size(data) != (int(row["height"]), int(row["width"])):
                yield f"{check.path}: {row['key'].decode()} does not have the sample table's height and width"
        except UnreadableImageError as error:
            yield f"{check.path}: {row['key'].decode()} does not decode: {plainer(error, data)}"
        advance(1, len(data))


def plainer(refused: UnreadableImageError, data: bytes) -> UnreadableImageError:
    """Return Pillow's reason for not decoding an image that DALI refuses; where it decodes it, DALI's."""
    try:
        decode(data)
    except UnreadableImageError as error:
        return error
    return refused
