"""Lists the images of CIFAR-10, from its Python archive or from PNGs in class folders."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from data_prep.hold_out import hold_out
from data_prep.sources import ImageRow, Listing, class_folders, pack_rows
from pipeline.base.command import UserError
from pipeline.base.progress import Progress
from pipeline.data.images import encode

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
# CIFAR's own order, which is alphabetical.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = {"train": "train", "val": "test"}  # the 10,000 test images are the dataset's val


@contextmanager
def recognise(source: Path) -> Iterator[dict[str, Listing]]:
    """List the splits "train" and "val" of `source`: the archive, a folder that holds it or its batches, or PNG folders.

    Raises UserError if `source` is none of them. The listings are valid inside the `with` statement.
    """
    if not source.exists():
        raise UserError(f"the source {source} does not exist: give {ARCHIVE} or a folder of PNGs")
    archive = source / ARCHIVE if source.is_dir() else source
    with TemporaryDirectory(prefix="cifar-") as temporary:
        if source.is_dir() and (source / "train").is_dir() and (source / "test").is_dir():
            yield png_folders(source)
        elif source.is_dir() and (source / BATCHES).is_dir():
            yield batches(source, Path(temporary), stamp=0)
        elif archive.is_file():
            unpack_batches(archive, Path(temporary))
            yield batches(Path(temporary), Path(temporary), stamp=archive.stat().st_mtime_ns)
        else:
            raise UserError(
                f"{source} is no source of CIFAR-10: looked for {ARCHIVE}, {BATCHES}/, and train/ and test/ with PNGs"
            )


def with_held_out(listings: dict[str, Listing], held: Fraction | int, seed: int) -> dict[str, Listing]:
    """Hold out training images (data_prep/hold_out.py) as "val"; the others are "train", CIFAR's test images "test".

    The 45k/5k split of section 4.2 is a count of 5,000. Which images a count draws does not depend on the kind of source.
    """
    train, val = hold_out(listings["train"], held, seed)
    if isinstance(held, int):  # such datasets were made before the manifest had this note: they keep their bytes
        val = replace(val, held_out=None)
    return {"train": train, "val": val, "test": listings["val"]}


def png_folders(source: Path) -> dict[str, Listing]:
    listings = {split: class_folders(source / folder) for split, folder in FOLDERS.items()}
    for listing in listings.values():
        if listing.classes != CLASSES:
            raise UserError(f"{listing.kind} are not CIFAR-10's: name them {', '.join(CLASSES)}")
    return listings


def unpack_batches(archive: Path, folder: Path) -> None:
    """Copy out of the archive only the batch files that torchvision's reader needs."""
    from torchvision.datasets import CIFAR10

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list] + [CIFAR10.meta["filename"]]
    (folder / BATCHES).mkdir()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in names:
                member = tar.extractfile(f"{BATCHES}/{name}")
                if member is None:
                    raise KeyError(f"{name} is not a file")
                (folder / BATCHES / name).write_bytes(member.read())
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise UserError(f"{archive} is not CIFAR-10's Python archive ({error}): get it again") from None


def batches(root: Path, spool: Path, stamp: int) -> dict[str, Listing]:
    """List the images of the batch files; torchvision reads them, and they are encoded as PNGs, one file per split in `spool`.

    The reader unpickles, so it checks the files' MD5 sums first. An image is named by its position in CIFAR's order.
    `stamp`: the source's modification time.
    """
    from torchvision.datasets import CIFAR10

    listings = {}
    for split in FOLDERS:
        try:
            data = CIFAR10(root, train=split == "train")
        except RuntimeError as error:
            raise UserError(
                f"the CIFAR-10 batches do not have their official checksums ({error}): get them again"
            ) from None
        assert tuple(data.classes) == CLASSES, "CIFAR-10's classes have another order"
        path, rows = spool / f"{split}.pngs", []
        with open(path, "wb") as file, Progress(len(data), f"encoding {split}", "images") as progress:
            for position, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                png = encode(Image.fromarray(pixels), {"format": "PNG"})
                rows.append(ImageRow(0, file.tell(), len(png), stamp, label, b"%05d.png" % position))
                file.write(png)
                progress.advance()
        listings[split] = Listing(
            kind="batches of CIFAR-10's Python archive", classes=CLASSES, containers=(str(path),), rows=pack_rows(rows)
        )
    return listings
