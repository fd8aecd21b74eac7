"""Lists the images of one split, each as a byte range of a file.

Listings of equal images from different sources are equal in everything that reaches the dataset (class, file name, bytes),
so that they give byte-identical datasets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.data.dataset import UNLABELLED

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
WHOLE_FILE = -1
LISTING_THREADS = 16  # more than cores, because listing a shared file system mostly waits for it
MAX_CLASSES = np.iinfo(np.int16).max  # the sample table's labels are int16


class ImageRow(NamedTuple):
    """One listed image. `offset` is WHOLE_FILE if the image is the file `name` in the folder `container`."""

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
    rows: one per image: container u4, offset i8 (WHOLE_FILE: the file `name` in the folder `container`), size i8 (bytes),
    stamp i8 (modification time of the file, ns), label i2 (index into `classes`, or UNLABELLED), name (file name, bytes).
    ignored: number of files skipped because their names are not those of images.
    """

    kind: str
    classes: tuple[str, ...]
    containers: tuple[str, ...]
    rows: NDArray[Any]
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        return int(self.rows["size"].sum())


def pack_rows(rows: Sequence[ImageRow]) -> NDArray[Any]:
    """Pack listed images into one structured array: about 60 bytes an image, where objects would take 400."""
    width = max((len(row.name) for row in rows), default=1)
    fields = [("container", "<u4"), ("offset", "<i8"), ("size", "<i8"), ("stamp", "<i8"), ("label", "<i2")]
    return np.array(list(rows), dtype=np.dtype([*fields, ("name", f"S{max(width, 1)}")]))


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def list_folder(folder: Path, container: int, label: int) -> tuple[NDArray[Any], int]:
    """List the images directly in `folder`, and count the other files there (without hidden ones)."""
    rows: list[ImageRow] = []
    ignored = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_image_name(entry.name):
                ignored += entry.is_file()
                continue
            try:
                status = entry.stat()
                size, stamp = status.st_size, status.st_mtime_ns
            except OSError:  # a dangling link is listed, so that it is reported as an unreadable image
                size, stamp = 0, 0
            rows.append(ImageRow(container, WHOLE_FILE, size, stamp, label, os.fsencode(entry.name)))
    return pack_rows(rows), ignored


def class_folders(folder: Path) -> Listing:
    """List images in one folder per class, as torchvision's ImageFolder does. Labels are ranks of the sorted names."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders: put each class's images into a folder of its own there")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{folder} has {len(names):,} class folders, more than the {MAX_CLASSES:,} the format can hold")
    paths = [folder / name for name in names]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        contents = list(pool.map(list_folder, paths, range(len(names)), range(len(names))))
    for path, (rows, _) in zip(paths, contents, strict=True):
        if not len(rows):
            raise UserError(
                f"the class folder {path} has no images ({', '.join(IMAGE_SUFFIXES)}) directly in it: "
                "put the class's images there or remove the folder"
            )
    return Listing(
        kind=f"class folders {folder}",
        classes=tuple(names),
        containers=tuple(str(path) for path in paths),
        rows=np.concatenate([rows for rows, _ in contents]),
        ignored=sum(ignored for _, ignored in contents),
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
