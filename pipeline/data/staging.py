"""`stage_to`: copies a split's shards to a disk of this machine, once for all its processes.

    FOLDER/NAME-TABLEHASH/NAME/*.tar             as in the dataset folder
                          NAME/*.tar.checked     hash, size and modification time of the copy beside it

A copy is written under another name, checked against the SHA-256 in the manifest and renamed. Later it counts as sound
while its size and time equal those in the .checked file, so that another start need not read it.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.base.command import UserError
from pipeline.base.files import TEMPORARY_SUFFIX, replacing
from pipeline.base.lock import lock
from pipeline.base.progress import Progress
from pipeline.base.regular import open_regular, read_regular
from pipeline.data.dataset import Split
from pipeline.data.storage import RemoteSplit

_COPIES_AT_ONCE = 4
_CHUNK_BYTES = 1 << 22
_CHECKED = ".checked"


@dataclass(frozen=True)
class _File:
    """A file of the split: its path below the folder, with size and hash as the manifest states them."""

    name: str
    bytes: int
    sha256: str


def staged(split: Split, folder: str | None) -> Split:
    """Return the same split, read from copies in `folder`; `split` itself if `folder` is None.

    One process of the machine copies the missing files, with a progress bar; the others wait for it. Raises UserError if
    the disk is too small or a copy does not match the SHA-256 in the manifest.
    """
    if folder is None:
        return split
    home = Path(folder) / f"{split.name}-{split.info.table_sha256[:16]}"
    (home / split.name).mkdir(parents=True, exist_ok=True)
    with _only_process(home / "lock"):
        missing = [file for file in _files(split) if not _is_sound(home, file)]
        if missing:
            _copy_all(split, home, missing)
    return Split(home, split.name, split.info, split.samples)


def _files(split: Split) -> list[_File]:
    return [_File(shard.file, shard.bytes, shard.sha256) for shard in split.info.shards]


def _is_sound(home: Path, file: _File) -> bool:
    try:
        return read_regular(home / (file.name + _CHECKED)) == _note(home, file).encode()
    except OSError:
        return False


def _note(home: Path, file: _File) -> str:
    status = (home / file.name).stat()
    return f"{file.sha256} {status.st_size} {status.st_mtime_ns}\n"


def _copy_all(split: Split, home: Path, files: list[_File]) -> None:
    for leftover in home.rglob(f"*{TEMPORARY_SUFFIX}"):  # of interrupted copies
        leftover.unlink()
    _check_space(home, files)
    megabytes = sum(file.bytes for file in files) // 10**6
    done = 0
    with (
        Progress(megabytes, f"staging {split.name} to {home}", "MB") as progress,
        ThreadPoolExecutor(_COPIES_AT_ONCE, "staging") as pool,
    ):
        try:
            for file, _ in zip(files, pool.map(lambda file: _copy(split, home, file), files), strict=True):
                done += file.bytes
                progress.advance(done // 10**6 - progress.done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _check_space(home: Path, files: list[_File]) -> None:
    needed = sum(file.bytes for file in files if not (home / file.name).exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{home} has {free / 1e9:.1f} GB free, but the shards to stage need {needed / 1e9:.1f} GB: "
            "free some space, choose another loader.stage_to, or train without it"
        )


def _copy(split: Split, home: Path, file: _File) -> None:
    digest = hashlib.sha256()
    with _open(split, file) as source, replacing(home / file.name) as copy:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise UserError(
                f"{split.folder / file.name} does not match the SHA-256 in the manifest: "
                "check the dataset with data_prep/verify.py, and prepare or copy that shard again"
            )
    (home / (file.name + _CHECKED)).write_text(_note(home, file), encoding="utf-8")


def _open(split: Split, file: _File) -> IO[bytes]:
    if isinstance(split, RemoteSplit):
        return split.open_shard(file.name)
    return open_regular(split.folder / file.name)


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the kernel frees it even if its holder is killed."""
    with open(path, "w", encoding="utf-8") as file:
        if not lock(file, elsewhere="choose another loader.stage_to"):
            print(f"waiting for another process to stage the shards in {path.parent}", file=sys.stderr)
            lock(file, wait=True)
        yield
