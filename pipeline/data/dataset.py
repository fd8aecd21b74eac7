"""Contract 1: a dataset is a folder. This module alone knows its format; data_prep/ writes it, the loader reads it.

    manifest.json        Manifest: format version, classes, splits with their shards (samples, bytes, sha256), seed
    manifest.json.sha256 hash of the manifest (sha256sum format), for data_prep/verify.py; readers do not need it
    statistics.npz       Statistics: per-pixel mean image and RGB covariance of the training split
    SPLIT.samples.npy    one row per sample (see `sample_dtype`), in sample-id order
    SPLIT/NAME-SPLIT-000000.tar (+ .idx)   WebDataset: KEY.jpg + KEY.cls; the index is DALI's

Its bytes do not depend on when or where it was made: equal sources and seeds give equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import threading
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError

FORMAT = "imagenet-pipeline-dataset"
VERSION = 1
MANIFEST = "manifest.json"
STATISTICS = "statistics.npz"
UNLABELLED = -1


def sample_dtype(key_bytes: int) -> np.dtype[Any]:
    """Return the type of a row of the sample table: a sample's image is the bytes [offset, offset + size) of the shard.

    `height` and `width` are those of the decoded array; `label` is the class index, or -1 in an unlabelled (test) split;
    `key` is ASCII, at most `key_bytes` long.
    """
    numbers = {"shard": "<u4", "offset": "<u8", "size": "<u4", "label": "<i2", "height": "<u2", "width": "<u2"}
    return np.dtype([*numbers.items(), ("key", f"S{key_bytes}")])


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
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise KeyError("format")
            if (version := fields.pop("version")) != VERSION:
                raise UserError(
                    f"{place} has dataset format version {version}, this code reads version {VERSION}: "
                    "prepare the dataset again with data_prep/shard_imagenet.py, or use the code that wrote it"
                )
            fields["classes"] = tuple(ClassInfo(**info) for info in fields["classes"])
            for name, split in fields["splits"].items():
                shards = tuple(ShardInfo(**info) for info in split.pop("shards"))
                fields["splits"][name] = SplitInfo(**split, shards=shards)
            return Manifest(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{place} is not a dataset's manifest ({error!r}): prepare the dataset with data_prep/shard_imagenet.py"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Pixel statistics of the training split.

    mean_image: float32 [S, S, 3], 0..255, RGB: the mean over centre S crops of the resized training images.
    eigenvalues float64 [3], eigenvectors float64 [3, 3] (columns): of the RGB covariance of pixels in [0, 1].
    """

    mean_image: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]

    @property
    def mean_colour(self) -> NDArray[np.float32]:
        """float32 [3], 0..255: the mean over the mean image, for images of another size (fully convolutional tests)."""
        return self.mean_image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)


class Split:
    """The samples of one split; reading one is a single `pread`. Thread-safe. Keeps every shard open once it was read."""

    def __init__(self, folder: Path, name: str, info: SplitInfo) -> None:
        self.folder, self.name, self.info = folder, name, info
        table = folder / info.table
        try:
            self.samples = np.load(table, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"the sample table {table} cannot be read ({error}): prepare the dataset again") from None
        if len(self.samples) != info.samples:
            raise UserError(
                f"{table} has {len(self.samples)} rows but the manifest says {info.samples}: prepare the dataset again"
            )
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        _allow_open_files(len(info.shards))

    def __len__(self) -> int:
        return self.info.samples

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]: class indices, -1 if unlabelled."""
        return self.samples["label"].astype(np.int64)

    def read(self, sample: int) -> bytes:
        """Return the encoded image of a sample id. Raises UserError, with key, shard and offset, if it cannot be read."""
        row = self.samples[sample]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["size"])
        try:
            data = self._read_range(shard, offset, size)
        except OSError as error:
            raise UserError(f"{self.describe(sample)} cannot be read ({error.strerror}): check the storage") from error
        if len(data) != size:
            raise UserError(
                f"{self.describe(sample)} ends early: the shard is truncated, prepare, copy or upload it again"
            )
        return data

    def describe(self, sample: int) -> str:
        """Return `sample KEY (bytes A to B of SHARD)`: the place of an image, for messages."""
        row = self.samples[sample]
        shard = self.folder / self.info.shards[int(row["shard"])].file
        start = int(row["offset"])
        return f"sample {row['key'].decode()} (bytes {start} to {start + int(row['size'])} of {shard})"

    def _read_range(self, shard: int, offset: int, size: int) -> bytes:
        return os.pread(self._file(shard), size, offset)

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                path = self.folder / self.info.shards[shard].file
                try:
                    self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise UserError(
                        f"the shard {path} cannot be opened ({error.strerror}): check the dataset"
                    ) from None
            return self._files[shard]

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()


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
        text = manifest.read_bytes().decode(errors="replace")  # the parser or the checksum reports any damage
        self.manifest = Manifest.from_json(text, manifest)
        # This hash identifies the dataset: the manifest holds the hashes of everything else.
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

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
        return Split(self.folder, name, self.manifest.splits[name])

    @cached_property
    def statistics(self) -> Statistics:
        path = self.folder / STATISTICS
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return Statistics(**{key: arrays[key] for key in ("mean_image", "eigenvalues", "eigenvectors")})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"the statistics {path} cannot be read ({error}): prepare the dataset again") from None


def _allow_open_files(files: int) -> None:
    """Raise the soft limit of open files: ImageNet at 1,000 samples per shard is 1,282 files, the usual limit 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
