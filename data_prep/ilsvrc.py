"""Lists ILSVRC 2012 as it is distributed: tars and the development kit, or the layout of Kaggle's archive."""

from __future__ import annotations

import csv
import io
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.order import stem
from data_prep.sources import LISTING_THREADS, ImageRow, Listing, list_folder, pack_rows
from data_prep.tars import Member, members, open_for_ranges
from pipeline.base.command import UserError
from pipeline.base.progress import Progress
from pipeline.data.dataset import ClassInfo
from pipeline.data.folders import PassedOver, is_image_name
from pipeline.data.sample_table import UNLABELLED

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
TEST_TARS = "ILSVRC2012_img_test*.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
KAGGLE_IMAGES = Path("ILSVRC/Data/CLS-LOC")
KAGGLE_VAL = "LOC_val_solution.csv"
KAGGLE_NAMES = "LOC_synset_mapping.txt"


@dataclass(frozen=True, kw_only=True)
class Devkit:
    """The development kit: classes and numbers of training images by wnid, and wnids of the val images by file stem."""

    place: Path
    classes: dict[str, ClassInfo]
    train_images: dict[str, int]
    val_classes: dict[str, str]


def read_devkit(source: Path) -> Devkit | None:
    """Read the development kit in `source`, unpacked or as .tar.gz; None if there is none."""
    folder, archive = source / DEVKIT, source / f"{DEVKIT}.tar.gz"
    try:
        if folder.is_dir():
            return _parse_devkit(folder, (folder / META).read_bytes(), (folder / GROUND_TRUTH).read_bytes())
        if archive.is_file():
            with tarfile.open(archive, "r:gz") as tar:
                files = [tar.extractfile(f"{DEVKIT}/{name}") for name in (META, GROUND_TRUTH)]
                meta, truth = (file.read() if file else b"" for file in files)
            return _parse_devkit(archive, meta, truth)
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the development kit in {source} cannot be read ({error}): get {DEVKIT}.tar.gz again"
        ) from None
    return None


def _parse_devkit(place: Path, meta: bytes, truth: bytes) -> Devkit:
    import scipy.io  # type: ignore[import-untyped] # takes half a second, so only if there is a development kit

    synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    # The file also holds the inner nodes of the hierarchy, numbered after the classes; only inner nodes have children.
    leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
    classes = [
        ClassInfo(wnid=str(leaf["WNID"]), name=str(leaf["words"]), ilsvrc2012_id=int(leaf["ILSVRC2012_ID"]))
        for leaf in leaves
    ]
    wnids = {info.ilsvrc2012_id: info.wnid for info in classes}
    val_ids = [int(line) for line in truth.split()]
    if unknown := sorted(set(val_ids) - wnids.keys()):
        raise ValueError(f"its ground truth has the id {unknown[0]}, for which meta.mat has no class")
    return Devkit(
        place=place,
        classes={info.wnid: info for info in classes},
        train_images={str(leaf["WNID"]): int(leaf["num_train_images"]) for leaf in leaves},
        # Line n of the ground truth is the ILSVRC2012_ID of image n.
        val_classes={
            f"ILSVRC2012_val_{number:08d}": wnids[class_id] for number, class_id in enumerate(val_ids, start=1)
        },
    )


def train_tar(path: Path) -> Listing:
    """List the training tar: a tar of one tar per class, named CLASS.tar. Raises UserError if it is damaged."""
    stamp = path.stat().st_mtime_ns
    with open_for_ranges(path) as (descriptor, size):
        inner = sorted(members(descriptor, 0, size, str(path), marked=True))
        if not inner or any(not tar.name.endswith(".tar") for tar in inner):
            raise UserError(f"{path} is not the training tar (a tar of one tar per class): get it again")

        def index(tar: Member) -> tuple[list[Member], tuple[PassedOver, ...]]:
            return _images(members(descriptor, tar.offset, tar.size, f"{path}: {tar.name}", marked=False))

        rows, passed_over = [], []
        with (
            Progress(len(inner), f"indexing {path.name}", "classes") as progress,
            ThreadPoolExecutor(LISTING_THREADS) as pool,
        ):
            for label, (tar, (images, others)) in enumerate(zip(inner, pool.map(index, inner), strict=True)):
                if not images:
                    raise UserError(f"{path}: {tar.name} has no images: get it again")
                rows.append(_tar_rows(images, stamp, label))
                passed_over += [one.inside(tar.name) for one in others]
                progress.advance()
    classes = tuple(tar.name.removesuffix(".tar") for tar in inner)
    kind = f"tar of class tars {path}"
    return Listing(
        kind=kind,
        classes=classes,
        containers=(str(path),),
        rows=np.concatenate(rows),
        passed_over=PassedOver.merged(passed_over),
    )


def _images(files: list[Member]) -> tuple[list[Member], tuple[PassedOver, ...]]:
    images = [file for file in files if is_image_name(file.name)]
    others = [file.name for file in files if not is_image_name(file.name)]
    return images, PassedOver.by_kind(others)


def _tar_rows(images: list[Member], stamp: int, label: int) -> NDArray[Any]:
    return pack_rows([ImageRow(0, image.offset, image.size, stamp, label, os.fsencode(image.name)) for image in images])


def flat_tar(path: Path) -> Listing:
    """List a tar of images without classes (val, whose labels are elsewhere, and test, which has none)."""
    with open_for_ranges(path) as (descriptor, size):
        images, passed_over = _images(members(descriptor, 0, size, str(path), marked=True))
    if not images:
        raise UserError(f"{path} has no images: get it again")
    rows = _tar_rows(images, path.stat().st_mtime_ns, UNLABELLED)
    return Listing(kind=f"tar {path}", classes=(), containers=(str(path),), rows=rows, passed_over=passed_over)


def flat_folder(folder: Path) -> Listing:
    """List a folder of images without classes."""
    rows, passed_over = list_folder(folder, 0, UNLABELLED)
    if not len(rows):
        raise UserError(f"{folder} has no images: put them there or remove the folder")
    kind = f"images without classes {folder}"
    return Listing(kind=kind, classes=(), containers=(str(folder),), rows=rows, passed_over=passed_over)


def labelled(listing: Listing, wnids: dict[str, str], truth: str) -> Listing:
    """Return `listing` with the class of every file from `wnids` (file stem -> class), which come from `truth`."""
    stems = [stem(name) for name in listing.rows["name"].tolist()]
    if missing := wnids.keys() - set(stems):
        raise UserError(
            f"{listing.kind} lacks {len(missing):,} of the {len(wnids):,} images that {truth} lists "
            f"(for example {min(missing)}): get it again"
        )
    if unknown := [os.fsdecode(name) for name in listing.rows["name"].tolist() if stem(name) not in wnids]:
        raise UserError(
            f"{listing.kind} has images that {truth} does not list (for example {min(unknown)}): remove them"
        )
    classes = tuple(sorted(set(wnids.values())))
    rank = {wnid: label for label, wnid in enumerate(classes)}
    rows = listing.rows.copy()
    rows["label"] = [rank[wnids[image]] for image in stems]
    return replace(listing, kind=f"{listing.kind}, labels {truth}", classes=classes, rows=rows)


def check_val_folders(val: Listing, devkit: Devkit) -> None:
    """Raise UserError if class folders put val images into other classes than the ground truth does.

    Some scripts that sort the val images mistake the ids of the ground truth for ranks of the sorted wnids.
    """
    images = [(stem(name), val.classes[label]) for name, label in val.rows[["name", "label"]].tolist()]
    truth = devkit.val_classes
    wrong = [f"{wnid}/{image} is of {truth[image]}" for image, wnid in images if truth.get(image, wnid) != wnid]
    if wrong:
        raise UserError(
            f"{val.kind}: {len(wrong):,} images lie in another class's folder than {devkit.place} says "
            f"(for example {min(wrong)}): sort them again"
        )


def kaggle_labels(path: Path) -> dict[str, str]:
    """Read the classes of the val images by file stem, from LOC_val_solution.csv: `ImageId,CLASS x y x y CLASS ...`."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path} is not Kaggle's list of val labels (ImageId,PredictionString): get it again") from None


def kaggle_names(path: Path) -> dict[str, ClassInfo]:
    """Read the class names by wnid, from LOC_synset_mapping.txt: `CLASS name, name, ...`."""
    pairs = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {pair[0]: ClassInfo(wnid=pair[0], name=pair[-1] if len(pair) > 1 else None) for pair in pairs}


def warn_of_missing_images(train: Listing, devkit: Devkit) -> None:
    """Warn if the training set has fewer images than the development kit counts."""
    counts = np.bincount(train.rows["label"], minlength=len(train.classes))
    short = {
        wnid: devkit.train_images[wnid] - int(count)
        for wnid, count in zip(train.classes, counts, strict=True)
        if count < devkit.train_images.get(wnid, 0)
    }
    if short:
        most = max(short, key=short.__getitem__)
        print(
            f"warning: train lacks {sum(short.values()):,} images in {len(short):,} classes by the development kit's "
            f"count ({most}: {short[most]:,})",
            file=sys.stderr,
        )
