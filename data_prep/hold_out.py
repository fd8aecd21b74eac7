"""`--hold-out`: some of the training images become the split "val", for sources that have none.

A share (0.1) is taken of every class: those of its images whose hash of (seed, class, file name) is lowest. So the draw is a
function of seed and names, and another image in one class moves no image of another class. Images of a class that are equal
byte for byte stay together, on one side.

A count (5000) is drawn from all images together, by the seed's permutation, whatever their classes: the 45k/5k split of
CIFAR-10 in section 4.2 of the paper.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.copies import equal_images
from data_prep.order import by_class_and_name, permutation
from data_prep.sources import Listing
from pipeline.base.command import UserError
from pipeline.base.ratios import read_ratio
from pipeline.data.folders import NAMED

OPTION = "--hold-out"


def amount(text: str) -> Fraction | int:
    """Read the option's value: a share of every class (a Fraction above 0 and below 1), or a count of images (int).

    A count is written in digits alone: 1 is one image, and 1.0 is no share.
    """
    value = read_ratio(text)
    if value is not None and text.strip().isdecimal():
        return int(value)
    if value is not None and value < 1:
        return value
    raise argparse.ArgumentTypeError(
        f"'{text}' is neither a share of the training images, below 1, such as 0.1, nor a number of them, in digits alone, "
        "such as 5000"
    )


def hold_out(whole: Listing, held: Fraction | int, seed: int) -> tuple[Listing, Listing]:
    """Divide the training images `whole` into (train, val). Raises UserError where train or val would be empty.

    held: a share of every class, rounded half up, but at least one image of a class of two or more, and never all of a
    class's images; or a count of images. Says on standard error how many val images have a copy left in train.
    """
    whole = replace(whole, rows=whole.rows[by_class_and_name(whole.rows["label"], whole.rows["name"])])
    equal = equal_images(whole)
    drawn = drawn_by_count(whole, held, seed) if isinstance(held, int) else drawn_by_share(whole, held, seed, equal)
    warn_of_copies(whole, drawn, equal)
    rule: dict[str, Any] = {"count": held} if isinstance(held, int) else {"share": float(held)}
    note = {"split": "train", "of": len(whole), "drawn": int(drawn.sum()), **rule}
    val = replace(whole, rows=whole.rows[drawn], kind=f"held out of {whole.kind}", passed_over=(), held_out=note)
    return replace(whole, rows=whole.rows[~drawn]), val


def drawn_by_count(whole: Listing, count: int, seed: int) -> NDArray[np.bool_]:
    """Return which images are drawn, bool [N]; the rows are in the order of class and name."""
    if not 0 < count < len(whole):
        raise UserError(f"{OPTION} must be from 1 to {len(whole) - 1:,} training images (got {count}; paper: 5000)")
    drawn = np.zeros(len(whole), bool)
    drawn[permutation(len(whole), seed)[:count]] = True
    left = np.bincount(whole.rows["label"][~drawn], minlength=len(whole.classes))
    if not left.all():
        emptied = whole.classes[int(np.argmin(left))]
        raise UserError(
            f"{OPTION} {count} takes every image of the class {emptied}: give fewer, or a share such as 0.1, which leaves "
            "each class some"
        )
    return drawn


def drawn_by_share(whole: Listing, share: Fraction, seed: int, equal: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which images are drawn, bool [N]. equal: the same number for images of equal bytes, int64 [N]."""
    drawn = np.zeros(len(whole), bool)
    for label, name in enumerate(whole.classes):
        members = np.flatnonzero(whole.rows["label"] == label).tolist()
        keys = {at: _key(seed, os.fsencode(name), whole.rows["name"][at]) for at in members}
        sets: dict[int, list[int]] = {}  # of equal images, in the order of the draw
        for at in sorted(members, key=keys.__getitem__):
            sets.setdefault(int(equal[at]), []).append(at)
        drawn[_first(sets.values(), math.floor(share * len(members) + Fraction(1, 2)))] = True
    if not drawn.any():
        raise UserError(f"{OPTION} {float(share):g} holds nothing out: no class has two different images")
    return drawn


def _key(seed: int, class_name: bytes, name: bytes) -> bytes:
    return hashlib.sha256(b"%d\0%b\0%b" % (seed, class_name, name)).digest()


def _first(sets: Iterable[list[int]], wanted: int) -> list[int]:
    """Return the images of the first sets that fit into `wanted` of them; at least one set, and never all sets."""
    *candidates, _ = sets  # the last one stays, whatever is wanted
    taken: list[int] = []
    for one in candidates:
        if len(taken) + len(one) <= max(wanted, 1):
            taken += one
    return taken or min(candidates, key=len, default=[])  # where each is larger than what is wanted


def warn_of_copies(whole: Listing, drawn: NDArray[np.bool_], equal: NDArray[np.int64]) -> None:
    """Say how many of the drawn images are equal, byte for byte, to one that stays in train."""
    copies = np.flatnonzero(drawn & np.isin(equal, equal[~drawn]))
    if len(copies):
        rows = whole.rows[copies[:NAMED]]
        names = [f"{whole.classes[row['label']]}/{os.fsdecode(row['name'])}" for row in rows]
        more = ", ..." if len(copies) > NAMED else ""
        print(
            f"warning: {len(copies):,} of the {drawn.sum():,} val images are in train too, byte for byte ({', '.join(names)}"
            f"{more}): val errors will be too low; remove the copies",
            file=sys.stderr,
        )
