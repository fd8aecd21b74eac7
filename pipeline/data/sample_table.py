"""The sample table of a split: a row for each sample, which says where its image lies and what it is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
BLOCK = 512  # bytes of a tar's header, which stands before each of its files


def sample_dtype(key_bytes: int) -> np.dtype[Any]:
    """Return the type of a row of the sample table: a sample's image is the bytes [offset, offset + size) of the shard.

    `height` and `width` are those of the decoded array; `label` is the class index, or -1 in an unlabelled (test) split;
    `key` is ASCII, at most `key_bytes` long.
    """
    numbers = {"shard": "<u4", "offset": "<u8", "size": "<u4", "label": "<i2", "height": "<u2", "width": "<u2"}
    return np.dtype([*numbers.items(), ("key", f"S{key_bytes}")])


def read_table(data: bytes, samples: int, shard_bytes: Sequence[int], classes: int) -> NDArray[Any]:
    """Return a split's sample table from the bytes of its file: `sample_dtype` [N], read-only.

    samples, shard_bytes: of the split, as the manifest states them. Raises ValueError if the table does not fit them or the
    number of classes.
    """
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is no .npy file of version 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        table: NDArray[Any] = np.frombuffer(data, dtype, offset=file.tell())  # no copy
    except Exception as error:  # of many types, after NumPy's parser
        raise ValueError(str(error) or repr(error)) from None
    names = dtype.names or ()
    if "key" not in names or dtype != sample_dtype(dtype["key"].itemsize):
        raise ValueError("its columns are not those of a sample table")
    if shape != table.shape or len(table) != samples:
        raise ValueError(f"it has {len(table):,} rows, the manifest says {samples:,} samples")
    for fault, rows in _faults(table, shard_bytes, classes):
        if rows.any():
            raise ValueError(f"row {int(rows.argmax())} {fault}")
    return table


def _faults(table: NDArray[Any], shard_bytes: Sequence[int], classes: int) -> Iterator[tuple[str, Any]]:
    """What may be wrong with rows, and bool [N]: with which."""
    yield "is of a shard that the manifest does not list", table["shard"] >= len(shard_bytes)
    if not len(table):
        return
    ends, offsets = np.array(shard_bytes, np.uint64)[table["shard"]], table["offset"]
    # Where an offset is too large by itself, its sum may overflow.
    yield "lies outside its shard", (offsets < BLOCK) | (offsets > ends) | (offsets + table["size"] > ends)
    yield f"has a label outside the {classes:,} classes", (table["label"] < UNLABELLED) | (table["label"] >= classes)
    yield "is of an image without pixels", (table["height"] == 0) | (table["width"] == 0)
    if not table["key"].tobytes().isascii():
        yield "has a key that is not ASCII", np.array([not key.isascii() for key in table["key"].tolist()])
