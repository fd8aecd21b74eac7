"""Makes one shard in one worker process: images in, a tar with its DALI index and its record out.

The record is written last: a shard without a record is unfinished, and a shard whose record does not match is made again.
"""

from __future__ import annotations

import hashlib
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.image_statistics import PixelSums, StatisticsPlan, centre_crop
from data_prep.images import ImageRules, PreparedImage, prepare_image
from data_prep.reading import SourceImage, read_all
from data_prep.record import NoRecordError, ShardFacts, ShardRecord, read_record, record_path, write_record
from data_prep.tars import BLOCK
from data_prep.workers import Advance
from pipeline.base.files import file_sha256, replacing
from pipeline.data.images import UnreadableImageError
from pipeline.data.sample_table import sample_dtype

# Imported once, before the workers are forked.
WORKER_MODULES = ["data_prep.tar_writer", "data_prep.shard", "pipeline.data.whole"]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to make: `file` (relative to the working folder), number `index` in its split.

    statistics: how the first `averaged` images are averaged; None if none are. skip_corrupt: leave out images that do not
    decode, instead of stopping.
    """

    split: str
    index: int
    file: str
    images: tuple[SourceImage, ...]
    statistics: StatisticsPlan | None
    averaged: int
    rules: ImageRules
    skip_corrupt: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the shard's inputs: a finished shard with the same fingerprint is not made again."""
        content = [(image.key, image.label, image.size, image.stamp) for image in self.images]
        settings = (self.split, self.index, self.file, repr(self.statistics), self.averaged, repr(self.rules))
        return hashlib.sha256(repr((settings, content)).encode()).hexdigest()


class Unreadable(NamedTuple):
    """An image that does not decode, and why."""

    key: str
    name: str
    reason: str


class UnreadableImagesError(Exception):
    """A shard cannot be made because these of its images do not decode."""

    def __init__(self, images: tuple[Unreadable, ...]) -> None:
        super().__init__(images)
        self.images = images


class HashingFile:
    """A file for writing that hashes all bytes written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


class ShardWriter:
    """Writes a tar with `webdataset.TarWriter`, and collects its DALI index, its rows of the sample table and its changes."""

    def __init__(self, file: IO[bytes], index: int) -> None:
        from data_prep.tar_writer import TarWriter  # only workers import it, before they are forked: see WORKER_MODULES

        self.file = HashingFile(file)
        # mtime must be an int, because a float adds a PAX header to every member. The encoder would re-encode images.
        self.tar = TarWriter(self.file, mtime=0, encoder=False)
        self.shard = index
        self.rows: list[tuple[Any, ...]] = []
        self.index_lines: list[str] = []
        self.changed: list[tuple[str, str]] = []
        self.shrunk = 0

    def add(self, image: SourceImage, prepared: PreparedImage) -> None:
        """Write KEY.cls and KEY.jpg or KEY.png, in this order (TarWriter sorts by suffix)."""
        components = {"cls": str(image.label).encode("ascii"), prepared.extension: prepared.data}
        position = self.tar.tarstream.offset
        self.tar.write({"__key__": image.key, **components})
        parts = []
        for extension, data in components.items():  # the image last
            offset = position + BLOCK
            parts.append(f"{extension} {offset} {len(data)} {image.key}.{extension}")
            position = offset + -(-len(data) // BLOCK) * BLOCK
        assert position == self.tar.tarstream.offset, f"a header of {image.key} took more than one block"
        self.index_lines.append(" ".join(parts))
        place, pixels = (self.shard, offset, len(prepared.data)), prepared.pixels
        self.rows.append((*place, image.label, pixels.height, pixels.width, image.key))
        if prepared.change:
            self.changed.append((image.key, prepared.change))
        self.shrunk += prepared.shrunk

    @property
    def index_text(self) -> bytes:
        """DALI's index: `v1.2 N`, then one line per sample with `extension offset size name` of each component."""
        return "\n".join([f"v1.2 {len(self.index_lines)}", *self.index_lines, ""]).encode("ascii")

    @property
    def table(self) -> NDArray[Any]:
        width = max((len(row[-1]) for row in self.rows), default=1)
        return np.array(self.rows, dtype=sample_dtype(width))


def is_finished(task: ShardTask, folder: Path) -> bool:
    """Return whether an earlier run made exactly this shard and its files are unchanged."""
    try:
        facts = read_record(record_path(folder, task.file)).facts
    except NoRecordError:
        return False
    if facts.fingerprint != task.fingerprint or (facts.left_out and not task.skip_corrupt):
        return False
    path = folder / task.file
    files = {path: facts.sha256, path.with_suffix(".idx"): facts.index_sha256}
    return all(file.is_file() and file_sha256(file) == digest for file, digest in files.items())


def make_shard(task: ShardTask, folder: Path, advance: Advance) -> None:
    """Make one shard in the working folder, its record last. Calls `advance` after each image.

    Raises UnreadableImagesError, after all images were checked, if some do not decode and must not be left out; OSError if
    the shard cannot be written. Either leaves no file of the shard.
    """
    path, record_file = folder / task.file, record_path(folder, task.file)
    record_file.unlink(missing_ok=True)
    sums = PixelSums(task.statistics.size) if task.statistics else None
    with replacing(path) as file:
        writer = ShardWriter(file, task.index)
        try:
            unreadable = _fill(writer, task, sums, advance)
        except BaseException:
            with suppress(OSError):  # the tar is discarded; if it stayed open, it would warn when collected
                writer.tar.close()
            raise
        writer.tar.close()
    with replacing(path.with_suffix(".idx")) as file:
        file.write(writer.index_text)
    facts = ShardFacts(
        fingerprint=task.fingerprint,
        bytes=writer.file.size,
        sha256=writer.file.hash.hexdigest(),
        index_sha256=hashlib.sha256(writer.index_text).hexdigest(),
        changed=tuple(writer.changed),
        left_out=tuple((image.key, image.reason) for image in unreadable),
        shrunk=writer.shrunk,
    )
    write_record(record_file, ShardRecord(facts=facts, rows=writer.table, sums=sums))


def _fill(writer: ShardWriter, task: ShardTask, sums: PixelSums | None, advance: Advance) -> list[Unreadable]:
    """Write the shard's images and add the averaged images to `sums`. Return the images that do not decode."""
    unreadable = []
    with closing(read_all(task.images)) as images:
        for number, (image, data) in enumerate(images):
            try:
                if isinstance(data, OSError):
                    raise UnreadableImageError(data.strerror or str(data))
                prepared = prepare_image(data, image.name, task.rules)
            except UnreadableImageError as error:
                unreadable.append(Unreadable(image.key, image.name, str(error)))
            else:
                if task.skip_corrupt or not unreadable:
                    writer.add(image, prepared)
                if sums and task.statistics and number < task.averaged:
                    sums.add(centre_crop(prepared.pixels, task.statistics.size, task.statistics.short_side))
            advance(1, image.size)
    if unreadable and not task.skip_corrupt:
        raise UnreadableImagesError(tuple(unreadable))
    return unreadable
