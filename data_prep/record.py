"""The record beside a finished shard: all that the manifest, the sample table and the statistics need of the shard."""

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
from pipeline.base.json_text import parse_json

RECORDS = "records"  # folder in the working folder, not published


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """Facts of a shard. fingerprint: of its inputs. changed, left_out: (key, reason). shrunk: number of shrunk images."""

    fingerprint: str
    bytes: int
    sha256: str
    index_sha256: str
    changed: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    shrunk: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard's facts, its `rows` of the sample table, and the pixel `sums` of its averaged images (None if it has none)."""

    facts: ShardFacts
    rows: NDArray[Any]
    sums: PixelSums | None


class NoRecordError(Exception):
    """There is no readable record."""


def record_path(folder: Path, file: str) -> Path:
    """Return the path of a shard's record in the working folder; `file` is the tar, relative to that folder."""
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
    """Read the record of a finished shard. Raises NoRecordError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = parse_json(arrays["facts"].tobytes())
            for name in ("changed", "left_out"):
                fields[name] = tuple((key, why) for key, why in fields[name])
            sums = None
            if "averaged" in arrays:
                sums = PixelSums(arrays["pixels"].shape[0])
                sums.merge(int(arrays["averaged"]), arrays["pixels"], arrays["products"])
            return ShardRecord(facts=ShardFacts(**fields), rows=arrays["rows"], sums=sums)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise NoRecordError(str(error)) from None
