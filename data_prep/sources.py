"""Lists the images of one split, each as a byte range of a file.

Listings of equal images from different sources are equal in everything that reaches the dataset (class, file name, bytes),
so that they give byte-identical datasets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.folders import PassedOver, is_folder, pictures_below
from pipeline.data.images import SUFFIXES, kind_of
from pipeline.data.sample_table import UNLABELLED

WHOLE_FILE = -1
LISTING_THREADS = 16  # more than cores, because listing a shared file system mostly waits for it
MAX_CLASSES = np.iinfo(np.int16).max  # the sample table's labels are int16
BESIDE = "beside the class folders"


class ImageRow(NamedTuple):
    """One listed image. `offset` is WHOLE_FILE if the image is the file `name` below the folder `container`."""

    container: int
    offset: int
    size: int
    stamp: int
    label: int
    name: bytes


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of one split.

    kind: what was recognised, in words. classes: names, sorted; () for an unlabelled split. containers: folders and tars.
    rows: one per image: container u4, offset i8 (WHOLE_FILE: the file `name` below the folder `container`), size i8 (bytes),
    stamp i8 (modification time of the file, ns), label i2 (index into `classes`, or UNLABELLED), name (file name, or path
    below the container, bytes). passed_over: the other files, without hidden ones. held_out: of a split that was drawn from
    another one's images, what the manifest says of it.
    """

    kind: str
    classes: tuple[str, ...]
    containers: tuple[str, ...]
    rows: NDArray[Any]
    passed_over: tuple[PassedOver, ...] = ()
    held_out: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kinds(self) -> Counter[str]:
        """How many images there are of each kind, by the names of their files."""
        counts: Counter[str] = Counter()
        # By suffix first: there are few, and a million names.
        for suffix, count in Counter(name[name.rfind(b".") :] for name in self.rows["name"].tolist()).items():
            if kind := kind_of(os.fsdecode(suffix)):
                counts[kind] += count
        return counts

    @property
    def bytes(self) -> int:
        return int(self.rows["size"].sum())


def pack_rows(rows: Sequence[ImageRow]) -> NDArray[Any]:
    """Pack listed images into one structured array: about 60 bytes an image, where objects would take 400."""
    width = max((len(row.name) for row in rows), default=1)
    fields = [("container", "<u4"), ("offset", "<i8"), ("size", "<i8"), ("stamp", "<i8"), ("label", "<i2")]
    return np.array(list(rows), dtype=np.dtype([*fields, ("name", f"S{max(width, 1)}")]))


def list_folder(folder: Path, container: int, label: int) -> tuple[NDArray[Any], tuple[PassedOver, ...]]:
    """List the images in `folder` and in the folders below it, named by their paths from there, and what is passed over.

    Raises UserError if a folder cannot be read.
    """
    images, passed_over = pictures_below(folder)
    return pack_rows([_row(entry, path, container, label) for entry, path in images]), passed_over


def _row(entry: os.DirEntry[str], path: str, container: int, label: int) -> ImageRow:
    try:
        status = entry.stat()
        size, stamp = status.st_size, status.st_mtime_ns
    except OSError:  # a dangling link is listed, so that it is reported as an unreadable image
        size, stamp = 0, 0
    return ImageRow(container, WHOLE_FILE, size, stamp, label, os.fsencode(path))


def class_folders(folder: Path) -> Listing:
    """List images in one folder per class, as torchvision's ImageFolder does. Labels are ranks of the sorted names."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in visible if is_folder(entry))
        beside = [entry.name for entry in visible if not is_folder(entry)]
    if not names:
        raise UserError(f"{folder} has no class folders: put each class's images into a folder of its own there")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{folder} has {len(names):,} class folders, more than the {MAX_CLASSES:,} the format can hold")
    paths = [folder / name for name in names]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        contents = list(pool.map(list_folder, paths, range(len(names)), range(len(names))))
    for path, (rows, others) in zip(paths, contents, strict=True):
        if not len(rows):
            found = f", but {', '.join(map(str, others))}" if others else ""
            raise UserError(
                f"the class folder {path} has no images in it{found}: put the class's images there ({', '.join(SUFFIXES)}) or "
                "remove the folder"
            )
    return Listing(
        kind=f"class folders {folder}",
        classes=tuple(names),
        containers=tuple(str(path) for path in paths),
        rows=np.concatenate([rows for rows, _ in contents]),
        passed_over=PassedOver.merged(
            [
                *PassedOver.of(BESIDE, beside),
                *(one.inside(name) for name, (_, several) in zip(names, contents, strict=True) for one in several),
            ]
        ),
    )


def labels_among(listing: Listing, classes: tuple[str, ...], split: str) -> NDArray[np.int16]:
    """Return the images' labels as indices into the training split's classes, int16 [N]; UNLABELLED stays."""
    if not listing.classes:
        return np.full(len(listing), UNLABELLED, np.int16)
    rank = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in listing.classes if name not in rank]
    if unknown:
        raise UserError(
            f"the {split} split has {len(unknown):,} classes that the training split lacks (for example '{unknown[0]}'): "
            f"give {split}'s class folders the names of train's"
        )
    return np.array([rank[name] for name in listing.classes], np.int16)[listing.rows["label"]]
