"""What a finished shard leaves beside itself: all that the manifest, the sample table and the statistics need of it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.image_statistics import PixelSums
from pipeline.base.files import replacing

RECORDS = "records"  # the working folder's part that is not published


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """fingerprint: what the shard was made from. changed, left_out: (key, why). shrunk: how many images were."""

    fingerprint: str
    bytes: int
    sha256: str
    index_sha256: str
    changed: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    shrunk: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """rows: the shard's rows of the sample table. sums: of its averaged images, None where there are none."""

    facts: ShardFacts
    rows: NDArray[Any]
    sums: PixelSums | None


class NoRecordError(Exception):
    """There is no record that can be read."""


def record_path(folder: Path, file: str) -> Path:
    """Where the record of a shard lies in the working folder; `file` is the tar, relative to it."""
    return (folder / RECORDS / file).with_suffix(".npz")


def write_record(path: Path, record: ShardRecord) -> None:
    facts = np.frombuffer(json.dumps(asdict(record.facts)).encode(), np.uint8)
    arrays: dict[str, Any] = {"facts": facts, "rows": record.rows}
    if record.sums:
        averaged = np.array(record.sums.images)
        arrays |= {"averaged": averaged, "pixels": record.sums.pixels, "products": record.sums.products}
    with replacing(path) as file:
        np.savez(file, **arrays)


def read_record(path: Path) -> ShardRecord:
    """The record of a finished shard. Raises NoRecordError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = json.loads(arrays["facts"].tobytes())
            for name in ("changed", "left_out"):
                fields[name] = tuple((key, why) for key, why in fields[name])
            sums = None
            if "averaged" in arrays:
                sums = PixelSums(arrays["pixels"].shape[0])
                sums.merge(int(arrays["averaged"]), arrays["pixels"], arrays["products"])
            return ShardRecord(facts=ShardFacts(**fields), rows=arrays["rows"], sums=sums)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise NoRecordError(str(error)) from None
