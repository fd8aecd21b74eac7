"""Recognises the layout of a source folder from its content, split by split, without options."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from data_prep import ilsvrc
from data_prep.hold_out import OPTION, hold_out
from data_prep.sources import Listing, class_folders
from pipeline.base.command import UserError
from pipeline.data.dataset import ClassInfo
from pipeline.data.folders import NAMED, is_folder, is_image_name

SPLITS = ("train", "val", "test")
VAL_NAMES = ("validation", "valid")  # other names of val, where there is none of that name
# Names that a folder of a split may have, and a class hardly.
SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The splits of a source folder, and its classes in label order (those of train, with names and ids if it has them)."""

    listings: dict[str, Listing]
    classes: tuple[ClassInfo, ...]


def recognise(source: Path, destination: Path | None = None) -> Source:
    """List the splits of `source`. Raises UserError if it is missing, empty, ambiguous or of no known layout.

    destination: the dataset folder to make, which must not lie among folders that are classes.
    """
    if not source.exists():
        raise UserError(f"the source {source} does not exist: give the folder that holds the images")
    if not source.is_dir():
        raise UserError(f"the source {source} is a file: give the folder that holds it")
    if not any(source.iterdir()):
        raise UserError(f"the source {source} is empty: give the folder that holds the images")
    places = {split: split_in(source, split) for split in SPLITS}
    if places["train"] is None:
        count = check_own_classes(source, places, destination)
        print(f"there is no train/ in {source}: reading its {count:,} folders as classes", file=sys.stderr)
        places["train"] = source
    else:
        tell_of_other_folders(source, places)
    devkit = ilsvrc.read_devkit(source)
    listings = {split: list_split(source, split, path, devkit) for split, path in places.items() if path}
    names: dict[str, ClassInfo] = {}
    if devkit:
        names = devkit.classes
        ilsvrc.warn_of_missing_images(listings["train"], devkit)
    elif (source / ilsvrc.KAGGLE_NAMES).is_file():
        names = ilsvrc.kaggle_names(source / ilsvrc.KAGGLE_NAMES)
    classes = tuple(names.get(wnid, ClassInfo(wnid=wnid)) for wnid in listings["train"].classes)
    return Source(listings=listings, classes=classes)


def split_in(source: Path, split: str) -> Path | None:
    """Return the folder or tar of a split in `source`; None if there is none. Raises UserError if there are two."""
    tars = {"train": ilsvrc.TRAIN_TAR, "val": ilsvrc.VAL_TAR, "test": ilsvrc.TEST_TARS}
    candidates = [source / split, source / ilsvrc.KAGGLE_IMAGES / split]
    paths = [path for path in candidates if path.is_dir()] + sorted(source.glob(tars[split]))
    if split == "val" and not paths:
        paths = [source / name for name in VAL_NAMES if (source / name).is_dir()]
    if len(paths) > 1:
        raise UserError(f"the source {source} holds {split} twice, {paths[0]} and {paths[1]}: move one of them away")
    return paths[0] if paths else None


def check_own_classes(source: Path, places: dict[str, Path | None], destination: Path | None) -> int:
    """Return how many folders `source` has, all of which are classes: SOURCE/cats/*.jpg, SOURCE/dogs/*.jpg.

    Raises UserError where that is not certain: folders that hold no picture themselves may be splits, or lie a level too high.
    """
    with os.scandir(source) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in visible if is_folder(entry))
    empty = [name for name in folders if not _has_picture(source / name)]
    splits = [name for name in folders if name.lower() in SPLIT_WORDS]
    if not folders or len(empty) == len(folders) or any(places.values()) or splits or is_ilsvrc(source):
        loose = sum(is_image_name(entry.name) for entry in visible if not is_folder(entry))
        here = f" (its {loose:,} pictures lie in no folder that would be their class)" if loose else ""
        raise UserError(
            f"the source {source} has no training images{here}: looked for train/CLASS/, {ilsvrc.TRAIN_TAR}, "
            f"{ilsvrc.KAGGLE_IMAGES}/train, and CLASS/ with pictures and no folder of a split beside it: put each class's "
            "pictures into train/CLASS/ there"
        )
    if empty:
        raise UserError(
            f"{source} has no train/, and not all of its folders can be classes: {empty[0]}/ has no pictures: remove it, put "
            "pictures there, or put the classes' folders into train/"
        )
    if len(folders) == 1:
        raise UserError(
            f"{source} has no train/, and one folder of pictures alone, {folders[0]}/: give the folder whose folders are the "
            "classes, of which there must be two"
        )
    if destination is not None and destination.resolve().is_relative_to(source.resolve()):
        raise UserError(f"the destination {destination} lies among the classes of {source}: give a folder elsewhere")
    return len(folders)


def _has_picture(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) and not entry.name.startswith(".") for entry in entries)


def is_ilsvrc(source: Path) -> bool:
    return any((source / name).is_dir() for name in (ilsvrc.DEVKIT, ilsvrc.KAGGLE_IMAGES.parts[0]))


def tell_of_other_folders(source: Path, places: dict[str, Path | None]) -> None:
    """Say which folders of `source` hold no split that was recognised."""
    known = {path.relative_to(source).parts[0] for path in places.values() if path} | {ilsvrc.DEVKIT}
    with os.scandir(source) as entries:
        others = sorted(one.name for one in entries if not one.name.startswith(".") and is_folder(one))
    if others := [name for name in others if name not in known]:
        more = ", ..." if len(others) > NAMED else ""
        print(f"not looked at in {source}: {', '.join(f'{name}/' for name in others[:NAMED])}{more}", file=sys.stderr)


def with_val(source: Path, listings: dict[str, Listing], held: Fraction | int | None, seed: int) -> dict[str, Listing]:
    """Return the splits of `source` with a val that is `held` out of train, where that was asked for.

    Says what can be done where there is no val, and raises UserError where there is one already.
    """
    if held is not None and "val" in listings:
        raise UserError(
            f"{source} has a val split already ({listings['val'].kind}): leave {OPTION} out, or take that split away"
        )
    if held is not None:
        train, val = hold_out(listings["train"], held, seed)
        return {"train": train, "val": val, **{name: one for name, one in listings.items() if name != "train"}}
    if "val" not in listings:
        looked = f"val/, {', '.join(f'{name}/' for name in VAL_NAMES)} and {ilsvrc.VAL_TAR}"
        print(
            f"there is no val split in {source} (looked for {looked}): training will measure no val error; {OPTION} 0.1 "
            "makes one of a tenth of each class's images",
            file=sys.stderr,
        )
    return listings


def list_split(source: Path, split: str, path: Path, devkit: ilsvrc.Devkit | None) -> Listing:
    """List the split at `path` according to its layout."""
    if path.is_file():
        listing = ilsvrc.train_tar(path) if split == "train" else ilsvrc.flat_tar(path)
    elif split == "train" or has_folders(path):
        listing = class_folders(path)
    else:
        listing = ilsvrc.flat_folder(path)
    if split == "val" and not listing.classes:
        wnids, truth = val_labels(source, devkit, listing)
        listing = ilsvrc.labelled(listing, wnids, truth)
    elif split == "val" and devkit:
        ilsvrc.check_val_folders(listing, devkit)
    return listing


def has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_folder(entry) and not entry.name.startswith(".") for entry in entries)


def val_labels(source: Path, devkit: ilsvrc.Devkit | None, listing: Listing) -> tuple[dict[str, str], str]:
    """Return the classes of the val images by file stem, and their origin. Raises UserError if there are none."""
    if devkit:
        return devkit.val_classes, str(devkit.place)
    if (source / ilsvrc.KAGGLE_VAL).is_file():
        return ilsvrc.kaggle_labels(source / ilsvrc.KAGGLE_VAL), str(source / ilsvrc.KAGGLE_VAL)
    raise UserError(
        f"{listing.kind} has no classes: put {ilsvrc.DEVKIT}.tar.gz or {ilsvrc.KAGGLE_VAL} into {source}, "
        "or the images into one folder per class"
    )
