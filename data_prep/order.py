"""Keys and order of a dataset's samples: pure functions of (listing, seed)."""

from __future__ import annotations

import hashlib
import os
import re

import numpy as np
from numpy.typing import NDArray

# A key and its suffix fit the 100 bytes of a name in a plain tar header. For WebDataset a dot would end the key, and a
# space would break DALI's index.
MAX_KEY = 96
NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_-]")


def stem(name: bytes) -> str:
    """Return a file name without its suffix."""
    return os.fsdecode(name).rpartition(".")[0] or os.fsdecode(name)


def sample_key(name: bytes, class_name: str | None) -> str:
    """Return an image's key in ASCII: its stem if that starts with `CLASS_` or there is no class, else `CLASS_STEM`."""
    text = stem(name)
    if class_name is not None and not text.startswith(f"{class_name}_"):
        text = f"{class_name}_{text}"
    key = NOT_IN_KEY.sub("-", text)
    if len(key) > MAX_KEY:
        digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
        key = f"{key[: MAX_KEY - 13]}-{digest}"
    return key


def by_class_and_name(labels: NDArray[np.int16], names: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return an order that does not depend on how the source was listed, int64 [N]."""
    return np.lexsort((names, labels)).astype(np.int64)


def by_stem(labels: NDArray[np.int16], names: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return the order of val and test, int64 [N]: with ILSVRC's numbered names, the order of the official ground truth."""
    stems = np.array([os.fsencode(stem(name)) for name in names.tolist()])
    return np.lexsort((names, labels, stems)).astype(np.int64)


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """Return a seeded permutation, int64 [count], by Philox words and a stable sort, which NumPy keeps, unlike its shuffles."""
    words = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


def unique_keys(keys: list[str]) -> NDArray[np.bytes_]:
    """Return `keys` without repetitions, bytes [N]: the first of equal keys stays, the next become KEY-2, KEY-3, ..."""
    taken, seen = set(keys), set()
    result = []
    for key in keys:
        unique = key
        if key in seen:
            number = 2
            while (unique := f"{key[: MAX_KEY - 8]}-{number}") in taken:
                number += 1
            taken.add(unique)
        seen.add(key)
        result.append(unique)
    return np.array(result, dtype=np.bytes_)
