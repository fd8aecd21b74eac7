"""The score file: one net's softmax scores of every image of one split under one protocol.

Every error rate that this project reports is computed from score files, so that anyone can check it. Equal weights, data
and protocol give equal bytes on the CPU, whatever the number of processes; times and hosts are in a file beside it.

    scores       float16 [N, classes]   softmax scores, 0..1, rows in sample-id order
    ids          int64 [N]              sample ids
    labels       int64 [N]              true classes, -1 if the split has none
    provenance   JSON text              `Provenance`, and labels_sha256
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.base.files import replacing
from pipeline.base.json_text import parse_json
from pipeline.base.regular import open_regular
from pipeline.data.sample_table import UNLABELLED

FORMAT = "imagenet-pipeline-scores"
VERSION = 3  # 2 added `stride`; 3 `preprocessing`, and only files that state it are of version 3
WITHOUT_PREPROCESSING = 2
ONE = 0x3C00  # the bits of float16 1.0; the bits of non-negative float16 numbers order as the numbers do
# Rounding to float16 changes a score by at most 2^-11 of itself, and by 2^-25 if it underflows: a true softmax sums
# to 1 within 5e-4 + classes * 3e-8.
SUM_TOLERANCE = 2e-3
ROWS = 1024  # rows computed at a time, which bounds the memory of 50,000 x 1000 arithmetic


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of scores: everything that decides their values."""

    arch: str
    stride: str  # "paper" or "v1.5"
    checkpoint: str  # file name
    iteration: int | None  # updates done; None if unknown
    weights: str  # "final", "recomputed-bn", "ema" or "file"
    weights_sha256: str  # of the state dict's contents (`nets.digest`)
    dataset_sha256: str  # of the manifest
    split: str
    protocol: str
    short_sides: tuple[int, ...]  # of the resized images, pixels
    crop: int  # side in pixels; of the net's training crop if fully convolutional
    normalization: str  # "per-pixel mean HASH" or "mean R,G,B std R,G,B" on the 0..255 scale
    precision: str  # "float32" or "bf16"
    preprocessing: str = ""  # the convention of the weights' origin; "": this pipeline's own

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal computations, whatever the file names: such scores can be continued or read instead of remade."""
        fields = self.stated
        del fields["checkpoint"], fields["iteration"], fields["weights"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def stated(self) -> dict[str, Any]:
        """The fields by name, as score files have them: without `preprocessing` where it is this pipeline's own."""
        fields = dataclasses.asdict(self)
        return fields if self.preprocessing else {name: fields[name] for name in fields if name != "preprocessing"}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A score file in memory (see the module's table); `path` if it was read from a file."""

    scores: NDArray[np.float16]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    provenance: Provenance
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> int:
        return int(self.scores.shape[1])

    @property
    def labelled(self) -> bool:
        return bool(len(self)) and bool((self.labels != UNLABELLED).all())

    @cached_property
    def labels_sha256(self) -> str:
        """SHA-256 of the (sample id, label) pairs, little-endian int64: equal for the same images with the same labels."""
        pairs = np.stack([self.ids, self.labels], axis=1).astype("<i8")
        return hashlib.sha256(pairs.tobytes()).hexdigest()

    def errors(self, k: int) -> float | None:
        """Return the top-k error in percent; None if the split has no labels."""
        return 100.0 * int((ranks_of(self) >= k).sum()) / len(self) if self.labelled else None


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes rank before the true one (0: the top-1 answer is right), int64 [N] on the scores' device.

    scores: [N, classes], any float dtype. labels: int64 [N], 0..classes-1. Classes with a greater score rank before the true
    class, and of those with an equal score the ones with a lower index: the order of a stable sort by falling score. The
    ranks are exact, and the same on every machine. A NaN for the true class ranks it last.
    """
    classes = torch.arange(scores.shape[1], device=scores.device)
    result = [torch.empty(0, dtype=torch.int64, device=scores.device)]
    for start in range(0, len(scores), ROWS):
        rows = scores[start : start + ROWS]
        rows = rows.float() if rows.dtype == torch.float16 else rows  # exact; CPUs have no float16 comparison
        label = labels[start : start + ROWS, None]
        true = rows.gather(1, label)
        before = (rows > true).sum(1) + ((rows == true) & (classes < label)).sum(1)
        result.append(torch.where(true.isnan()[:, 0], rows.shape[1], before))
    return torch.cat(result)


def ranks_of(scores: Scores) -> NDArray[np.int64]:
    """Return the `ranks` of a labelled score file, int64 [N]."""
    return ranks(torch.from_numpy(scores.scores), torch.from_numpy(scores.labels)).numpy()


def save(scores: Scores, path: Path) -> None:
    """Write a score file, whole or not at all. Equal scores give equal bytes."""
    provenance = {**scores.provenance.stated, "labels_sha256": scores.labels_sha256}
    version = VERSION if scores.provenance.preprocessing else WITHOUT_PREPROCESSING
    text = json.dumps({"format": FORMAT, "version": version, **provenance}, sort_keys=True)
    arrays: dict[str, Any] = {"scores": scores.scores, "ids": scores.ids, "labels": scores.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays, provenance=np.array(text))


def score_bytes(samples: int, classes: int) -> int:
    """The size of a score file, but for a few kilobytes: scores float16, ids and labels int64."""
    return samples * (2 * classes + 8 + 8)


def read_provenance(path: Path) -> tuple[Provenance, str]:
    """Read provenance and labels_sha256 of a score file, without its scores. Raises UserError as `load` does."""
    with _open(path) as arrays:
        return _provenance(arrays)


def load(path: Path) -> Scores:
    """Read and check a score file. Raises UserError if it is missing, damaged or not a table of softmax scores."""
    with _open(path) as arrays:
        provenance, labels_sha256 = _provenance(arrays)
        columns = {key: arrays[key] for key in ("scores", "ids", "labels")}
        scores = Scores(**columns, provenance=provenance, path=path)
        _check(scores, labels_sha256)
    return scores


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The arrays in a score file. Raises UserError where they cannot be read, or the caller finds a fault (ValueError)."""
    try:
        # ZipFile refuses other formats. NumPy would take them for pickles, and its message would explain how to open those.
        with open_regular(path) as file:
            zipfile.ZipFile(file).close()
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                yield arrays
    except FileNotFoundError:
        raise UserError(f"there is no score file {path}: write one with 'python -m pipeline.evaluate'") from None
    except (KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{path} is not a readable score file ({reason}): evaluate again with 'python -m pipeline.evaluate'"
        ) from None


def _provenance(arrays: Any) -> tuple[Provenance, str]:
    fields = parse_json(str(arrays["provenance"]))
    if (fields.pop("format"), fields.pop("version")) not in ((FORMAT, WITHOUT_PREPROCESSING), (FORMAT, VERSION)):
        raise ValueError("another format or version")
    labels_sha256 = fields.pop("labels_sha256")
    fields["short_sides"] = tuple(fields["short_sides"])
    return Provenance(**fields), labels_sha256


def _check(scores: Scores, labels_sha256: str) -> None:
    """Raise ValueError unless these are scores float16 [N, classes] of samples 0 to N - 1, labelled or not.

    Raises UserError where there are none, and where they are no softmax.
    """
    table, ids, labels = scores.scores, scores.ids, scores.labels
    if table.dtype != np.float16 or table.ndim != 2 or table.shape[1] < 1:
        raise ValueError(f"its scores are {table.dtype} {list(table.shape)}, not float16 [N, classes]")
    if not (ids.dtype == labels.dtype == np.int64 and ids.shape == labels.shape == table.shape[:1]):
        raise ValueError(f"its {len(table)} rows of scores do not fit its ids {ids.shape} and labels {labels.shape}")
    if len(table) == 0:
        raise UserError(f"{scores.path} holds no scores because its split is empty: evaluate one that has images")
    if not np.array_equal(ids, np.arange(len(ids))):
        raise ValueError("its ids are not 0 to N - 1 in order")
    if labels.min() < UNLABELLED or labels.max() >= table.shape[1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()} with {table.shape[1]} classes")
    if scores.labels_sha256 != labels_sha256:
        raise ValueError("its labels' hash differs")
    check_softmax(table, str(scores.path))


def check_softmax(table: NDArray[np.float16], place: str) -> None:
    """Raise UserError if a row is not a softmax: NaN, a value outside 0..1, or a sum that is not near 1."""
    for start in range(0, len(table), ROWS):
        rows = np.ascontiguousarray(table[start : start + ROWS])
        outside = rows.view(np.uint16).max(axis=1) > ONE  # NaN, infinity, negative (the sign bit) and above 1
        total = torch.from_numpy(rows).float().sum(dim=1).numpy()  # NumPy converts float16 slowly
        bad = outside | ~(np.abs(total - 1) <= SUM_TOLERANCE)
        if bad.any():
            row = int(bad.argmax())
            raise UserError(
                f"row {start + row} of {place} is not a softmax (NaN, a value outside 0..1, or a sum of {total[row]:g} "
                "instead of 1): the net's weights are damaged or diverged, evaluate a sound checkpoint"
            )
