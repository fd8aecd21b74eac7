"""Contract 1: a dataset is a folder. This module alone knows its format; data_prep/ writes it, the loader reads it.

    manifest.json        Manifest: format version, classes, splits with their shards (samples, bytes, sha256), seed
    manifest.json.sha256 hash of the manifest (sha256sum format), for data_prep/verify.py; readers do not need it
    statistics.npz       Statistics: per-pixel mean image and RGB covariance of the training split
    SPLIT.samples.npy    one row per sample (pipeline/data/sample_table.py), in sample-id order
    SPLIT/NAME-SPLIT-000000.tar (+ .idx)   WebDataset: KEY.jpg + KEY.cls; the index is DALI's

Its bytes do not depend on when or where it was made: equal sources and seeds give equal bytes. Sample table and statistics are
checked against the manifest's hashes whenever they are opened. Shards, which are too large for that, are checked as they are
read: each for its size, and each image for its own header in the tar.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.base.json_text import parse_json
from pipeline.base.regular import read_regular
from pipeline.base.typed import read_typed
from pipeline.data.sample_table import BLOCK, read_table
from pipeline.data.shards import OpenShards

FORMAT = "imagenet-pipeline-dataset"
VERSION = 1
MANIFEST = "manifest.json"
STATISTICS = "statistics.npz"
EXTENSIONS = ("jpg", "png")  # of images in shards


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One class. `wnid` is the name of its folder (ImageNet: the WordNet id); its index in the list is the label."""

    wnid: str
    name: str | None = None  # readable name, if the source has one
    ilsvrc2012_id: int | None = None  # id of the development kit, 1..1000, as submission files need it


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar and its DALI index. `file` is relative to the dataset folder; the index is `file` with suffix .idx."""

    file: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split: its sample table (file, sha256) and its shards in sample-id order."""

    samples: int
    table: str
    table_sha256: str
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a dataset. `statistics` states how statistics.npz was computed (sizes in pixels, image count, sha256).

    `notes` lists the samples that preparation changed or left out, by key.
    """

    seed: int
    classes: tuple[ClassInfo, ...]
    splits: dict[str, SplitInfo]
    statistics: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that begins the shards' file names (NAME-SPLIT-000000.tar); "" where they show none."""
        files = [(split, shard.file) for split, info in self.splits.items() for shard in info.shards]
        return next((Path(file).name.rpartition(f"-{split}-")[0] for split, file in files), "")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, place: Path) -> Manifest:
        """Read a manifest. Raises UserError if `text` is no manifest, or one of another version."""
        again = "prepare the dataset with data_prep/shard_imagenet.py"
        try:
            fields = parse_json(text)
            if fields.pop("format") != FORMAT:
                raise KeyError("format")
            version = fields.pop("version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place} is not a dataset's manifest ({error!r}): {again}") from None
        if version != VERSION:
            raise UserError(
                f"{place} has dataset format version {version}, this code reads version {VERSION}: "
                "prepare the dataset again with data_prep/shard_imagenet.py, or use the code that wrote it"
            )
        manifest = read_typed(Manifest, fields, str(place))
        for fault in _faults(manifest):
            raise UserError(f"{place} is damaged ({fault}): {again}")
        return manifest


def _faults(manifest: Manifest) -> Iterator[str]:
    """What a manifest of the right types says that cannot be."""
    if not manifest.classes:
        yield "it lists no classes"
    for split in manifest.splits.values():
        if split.samples < 0 or not all(0 <= shard.bytes < 2**63 for shard in split.shards):
            yield "it states sizes that cannot be"
        for file in (split.table, *(shard.file for shard in split.shards)):
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                yield f"{file!r} lies outside the dataset"
            if "\0" in file:
                yield f"{file!r} is no file's name"


# What is subtracted from images: the mean image, pixel by pixel, where they have its size, else its mean colour; or always
# the mean colour.
Subtracted = Literal["mean-image", "mean-colour"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Pixel statistics of the training split.

    mean_image: float32 [S, S, 3], 0..255, RGB: the mean over centre S crops of the resized training images.
    eigenvalues float64 [3], eigenvectors float64 [3, 3] (columns): of the RGB covariance of pixels in [0, 1].
    """

    mean_image: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]

    @staticmethod
    def of(data: bytes, size: int | None) -> Statistics:
        """Read the arrays of a .npz file, with a mean image of `size` pixels square. Raises ValueError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                statistics = Statistics(**{one.name: arrays[one.name] for one in dataclasses.fields(Statistics)})
        except Exception as error:  # NumPy's and zipfile's readers raise many types
            raise ValueError(str(error) or repr(error)) from None
        mean, values, vectors = statistics.mean_image, statistics.eigenvalues, statistics.eigenvectors
        side = len(mean) if size is None and mean.ndim else size
        for name, array, shape, kind in (
            ("mean_image", mean, (side, side, 3), np.float32),
            ("eigenvalues", values, (3,), np.float64),
            ("eigenvectors", vectors, (3, 3), np.float64),
        ):
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not {np.dtype(kind)} {list(shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")
        return statistics

    @property
    def mean_colour(self) -> NDArray[np.float32]:
        """float32 [3], 0..255: the mean over the mean image, for images of another size (fully convolutional tests)."""
        return self.mean_image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)

    def subtracting(self, what: Subtracted) -> Statistics:
        """The statistics for a net from whose images `what` is subtracted.

        For mean-colour those of a mean image of one pixel: no image has its size, so each has the mean colour subtracted.
        """
        return self if what == "mean-image" else dataclasses.replace(self, mean_image=self.mean_colour[None, None])


class Split:
    """The samples of one split; reading one is a single `pread`. Thread-safe."""

    def __init__(self, folder: Path, name: str, info: SplitInfo, samples: NDArray[Any]) -> None:
        """samples: the split's table (`read_table`), kept in memory: a mapped file that is cut off kills the process."""
        self.folder, self.name, self.info, self.samples = folder, name, info, samples
        self._shards = OpenShards(folder, [(shard.file, shard.bytes) for shard in info.shards])

    def __len__(self) -> int:
        return self.info.samples

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]: class indices, -1 if unlabelled."""
        return self.samples["label"].astype(np.int64)

    def read(self, sample: int) -> bytes:
        """Return the encoded image of a sample id.

        Raises UserError, with key, shard and offset, if it cannot be read, or if the shard holds something else there.
        """
        row = self.samples[sample]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["size"])
        try:
            data = self._read_range(shard, offset - BLOCK, BLOCK + size)
        except OSError as error:
            raise UserError(f"{self.describe(sample)} cannot be read ({error.strerror}): check the storage") from error
        if len(data) != BLOCK + size:
            raise UserError(
                f"{self.describe(sample)} ends early: the shard is truncated, prepare, copy or upload it again"
            )
        if not _announces(data, row["key"], size):
            raise UserError(
                f"{self.describe(sample)} is not there: the shard was replaced or damaged after the dataset was prepared, "
                "check the dataset with data_prep/verify.py, and prepare, copy or upload that shard again"
            )
        return data[BLOCK:]

    def describe(self, sample: int) -> str:
        """Return `sample KEY (bytes A to B of SHARD)`: the place of an image, for messages."""
        row = self.samples[sample]
        shard = self.folder / self.info.shards[int(row["shard"])].file
        start = int(row["offset"])
        return f"sample {row['key'].decode()} (bytes {start} to {start + int(row['size'])} of {shard})"

    def _read_range(self, shard: int, offset: int, size: int) -> bytes:
        return self._shards.read(shard, offset, size)

    def close(self) -> None:
        """Close the shards' files; a later read opens them again."""
        self._shards.close()


def _announces(header: bytes, key: bytes, size: int) -> bool:
    """Whether a tar's header, in front of its file, is that of the image `key` of `size` bytes (POSIX ustar)."""
    name, octal = header[:100].rstrip(b"\0"), header[124:136]
    return name.startswith(key) and name[len(key) :] in _ENDINGS and octal == b"%011o\0" % size


_ENDINGS = tuple(f".{extension}".encode() for extension in EXTENSIONS)


class Dataset:
    """A dataset folder, opened. Raises UserError if `folder` is no dataset."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            raise UserError(
                f"{self.folder} is not a dataset folder (it has no {MANIFEST}): "
                f"prepare it with 'python data_prep/shard_imagenet.py SOURCE {self.folder}'"
            )
        text = manifest.read_bytes()
        self.manifest = Manifest.from_json(text.decode(errors="replace"), manifest)  # it reports any damage
        # This hash identifies the dataset: the manifest holds the hashes of everything else.
        self.sha256 = hashlib.sha256(text).hexdigest()

    @property
    def classes(self) -> int:
        return len(self.manifest.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The readable name of every label, or its WordNet id where it has none."""
        return tuple(info.name or info.wnid for info in self.manifest.classes)

    @property
    def name(self) -> str:
        """What its shards are named after (`--name` of the preparation); the folder's name where they show no name."""
        return self.manifest.name or self.folder.resolve().name

    def split(self, name: str) -> Split:
        if name not in self.manifest.splits:
            splits = ", ".join(self.manifest.splits)
            raise UserError(f"the dataset {self.folder} has no split '{name}' (it has: {splits})")
        info = self.manifest.splits[name]
        return Split(self.folder, name, info, self._table(info))

    def _table(self, info: SplitInfo) -> NDArray[Any]:
        data = self._small_file(info.table, info.table_sha256)
        try:
            return read_table(data, info.samples, [shard.bytes for shard in info.shards], self.classes)
        except ValueError as error:
            place = self.folder / info.table
            raise UserError(f"the sample table {place} cannot be read ({error}): prepare the dataset again") from None

    @cached_property
    def statistics(self) -> Statistics:
        described = self.manifest.statistics
        if described is None:
            raise UserError(f"the dataset {self.folder} has no statistics: prepare the dataset again")
        data = self._small_file(STATISTICS, described.get("sha256"))
        try:
            return Statistics.of(data, described.get("size"))
        except ValueError as error:
            place = self.folder / STATISTICS
            raise UserError(f"the statistics {place} cannot be read ({error}): prepare the dataset again") from None

    def _small_file(self, name: str, sha256: str | None) -> bytes:
        """Return the content of a file of the dataset. Raises UserError if it is not the one that the manifest describes."""
        path = self.folder / name
        try:
            data = read_regular(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): prepare or copy the dataset again") from None
        check_hash(data, sha256, str(path))
        return data


def check_hash(data: bytes, sha256: str | None, place: str) -> None:
    """Raise UserError, which names `place`, if the bytes of a file are not those whose hash the manifest has."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{place} does not match the SHA-256 in the manifest: it is damaged or another dataset's, "
            "prepare, copy or upload the dataset again"
        )
