"""Finds images of a listing that are equal byte for byte: a source of one's own often holds a picture twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.reading import MAX_BYTES
from data_prep.sources import LISTING_THREADS, WHOLE_FILE, ImageRow, Listing
from pipeline.base.regular import open_regular

PROBE = 512  # bytes from an image's middle: copies and hardly any others have them in common
CHUNK = 2**20  # bytes that are read at once

_Digest = Callable[[ImageRow], bytes]


def equal_images(listing: Listing) -> NDArray[np.int64]:
    """Return a number for every image, int64 [N], which is the same for two images if and only if their bytes are equal.

    Only images of equal size are looked at: first PROBE bytes of each, then, of those that agree in them, all. An image that
    cannot be read is equal to no other; reading it for the dataset reports it.
    """
    rows = [ImageRow(*row) for row in listing.rows.tolist()]
    groups = _numbered([row.size for row in rows])
    readable = (listing.rows["size"] > 0) & (listing.rows["size"] <= MAX_BYTES)

    def probe(row: ImageRow) -> bytes:
        return _digest(listing, row, row.size // 2, min(PROBE, row.size - row.size // 2))

    def whole(row: ImageRow) -> bytes:
        return _digest(listing, row, 0, row.size)

    for digest in (probe, whole):
        groups = _split(groups, rows, readable, digest)
    return groups


def _split(
    groups: NDArray[np.int64], rows: list[ImageRow], readable: NDArray[np.bool_], digest: _Digest
) -> NDArray[np.int64]:
    """Split every group of several images by their digests."""
    several = np.flatnonzero((np.bincount(groups, minlength=len(rows))[groups] > 1) & readable)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = dict(zip(several.tolist(), pool.map(lambda at: digest(rows[at]), several.tolist()), strict=True))
    # An image that cannot be read is alone.
    return _numbered([(group, found.get(at) or at) for at, group in enumerate(groups.tolist())])


def _numbered(values: Iterable[object]) -> NDArray[np.int64]:
    """Return a number from 0 on for each value, the same for equal ones."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)


def _digest(listing: Listing, row: ImageRow, start: int, size: int) -> bytes:
    """Return the SHA-256 of `size` bytes of an image from its byte `start` on; b"" where they cannot be read."""
    container = listing.containers[row.container]
    path = os.path.join(container, os.fsdecode(row.name)) if row.offset == WHOLE_FILE else container
    total = hashlib.sha256()
    try:
        with open_regular(Path(path)) as file:
            file.seek(max(row.offset, 0) + start)
            while size and (part := file.read(min(CHUNK, size))):
                total.update(part)
                size -= len(part)
    except OSError:
        return b""
    return total.digest()
