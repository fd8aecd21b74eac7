"""Reads datasets on object storage (s3://BUCKET/FOLDER and all other addresses that fsspec knows) by byte ranges.

The small files (manifest, statistics, sample tables) are kept in a cache folder and checked against the manifest; an image
is one ranged request. fsspec takes addresses and credentials from its usual places: for S3, AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or ~/.aws.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]
from numpy.typing import NDArray

from pipeline.base.command import UserError, check_without_secrets
from pipeline.base.files import replacing
from pipeline.data.dataset import MANIFEST, Dataset, Split, SplitInfo, check_hash

# Where they are to be given instead.
SECRETS_OF_STORAGE = (
    "give it where fsspec looks for it: for s3:// in ~/.aws or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for others in "
    "~/.config/fsspec or FSSPEC_... (docs/tracking.md)"
)


def open_dataset(location: str | Path, cache: Path | None = None) -> Dataset:
    """Open the dataset at a local path, or at a URL such as s3://bucket/imagenet.

    cache: folder for the small files of a remote dataset; None is $XDG_CACHE_HOME or ~/.cache.
    Raises UserError if there is no dataset, if it cannot be reached, or if the address holds a password.
    """
    check_without_secrets("the dataset's address", str(location), SECRETS_OF_STORAGE)
    return RemoteDataset(str(location), cache) if is_url(location) else Dataset(location)


def is_url(location: str | Path) -> bool:
    return "://" in str(location)


def location_in(folder: Path, location: str) -> str:
    """A dataset's location where relative paths begin in `folder`; a URL stays as it is."""
    return location if is_url(location) else str(folder / location)


class RemoteDataset(Dataset):
    """A dataset folder on object storage; its `folder` is the cache of its small files."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            self.filesystem, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be opened: {error}") from None
        manifest = self._fetch(MANIFEST)
        cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-on-clusters"
        folder = cache / hashlib.sha256(manifest).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / MANIFEST) as file:
            file.write(manifest)
        super().__init__(folder)

    def split(self, name: str) -> Split:
        local = super().split(name)
        return RemoteSplit(local.folder, name, local.info, local.samples, self.filesystem, self.root, self.url)

    def _small_file(self, name: str, sha256: str | None) -> bytes:
        with suppress(UserError):  # not in the cache yet, or damaged there
            return super()._small_file(name, sha256)
        data = self._fetch(name)
        check_hash(data, sha256, f"{self.url}/{name}")
        with replacing(self.folder / name) as file:
            file.write(data)
        return data

    def _fetch(self, name: str) -> bytes:
        try:
            return self.filesystem.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            raise UserError(
                f"{self.url} is not a dataset (it has no {name}): upload a dataset folder made by data_prep/ there"
            ) from None
        except Exception as error:  # each implementation of fsspec raises the errors of its own library
            raise UserError(
                f"{self.url}/{name} cannot be read ({_sentence(error)}): check address and rights"
            ) from error


class RemoteSplit(Split):
    """A split whose shards are on object storage. Thread-safe: reads are independent ranged requests."""

    def __init__(
        self, folder: Path, name: str, info: SplitInfo, samples: NDArray[Any], filesystem: Any, root: str, url: str
    ) -> None:
        super().__init__(folder, name, info, samples)
        self.filesystem, self.root, self.url = filesystem, root, url

    def _read_range(self, shard: int, offset: int, size: int) -> bytes:
        path = f"{self.root}/{self.info.shards[shard].file}"
        try:
            return self.filesystem.cat_file(path, start=offset, end=offset + size)
        except Exception as error:  # fsspec has tried again already
            raise OSError(errno.EIO, _sentence(error)) from error

    def describe(self, sample: int) -> str:
        return super().describe(sample).replace(str(self.folder), self.url)

    def open_shard(self, file: str) -> IO[bytes]:
        """Open a shard as a stream, to copy it whole."""
        return self.filesystem.open(f"{self.root}/{file}", "rb")


def _sentence(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
