"""Writes an ILSVRC classification submission: one line per image in file-name order, up to 5 class ids, best first.

The ids are the development kit's ILSVRC2012_ID (1 = n02119789), not the ranks of the sorted WordNet ids.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.data.dataset import Dataset, Split
from pipeline.data.sample_table import UNLABELLED
from pipeline.evaluation.ensemble import average
from pipeline.evaluation.scores import ROWS, Scores

LINES = {"test": 100_000, "val": 50_000}  # ILSVRC 2012
ANSWERS = 5
NAME = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})$")


def class_ids(dataset: Dataset) -> NDArray[np.int64]:
    """Return the development kit's id of each label, int64 [classes]. Raises UserError if the dataset does not have them."""
    ids = [info.ilsvrc2012_id for info in dataset.manifest.classes]
    if None in ids:
        lacking = dataset.manifest.classes[ids.index(None)].wnid
        raise UserError(
            f"the dataset {dataset.folder} does not know the ILSVRC2012_ID of its classes ({lacking} has none): "
            "prepare it with the development kit beside the images"
        )
    if len(set(ids)) != len(ids):
        raise UserError(f"the dataset {dataset.folder} gives two classes one ILSVRC2012_ID: prepare it again")
    return np.array(ids, dtype=np.int64)


def check_order(split: Split) -> None:
    """Raise UserError unless the sample ids follow ILSVRC's file names, as preparation orders val and test."""
    numbers = []
    for key in split.samples["key"]:
        if (match := NAME.search(key.decode())) is None:
            raise UserError(
                f"'{key.decode()}' in the split '{split.name}' of {split.folder} is no image of ILSVRC 2012 val or test: "
                "give a dataset of those, because submissions exist for them alone"
            )
        numbers.append(int(match[1]))
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise UserError(f"the samples of {split.folder} '{split.name}' are not in file-name order: prepare it again")


def answers(members: Sequence[Scores]) -> Iterator[NDArray[np.int64]]:
    """Yield the labels with the highest average scores, int64 [ROWS, 5], best first; ties go to the lower label."""
    for start in range(0, len(members[0]), ROWS):
        mean = average(members, slice(start, start + ROWS))
        yield np.argsort(-mean, axis=1, kind="stable")[:, :ANSWERS]


def write(path: Path, members: Sequence[Scores], ids: NDArray[np.int64], lines: int) -> list[list[int]]:
    """Write the submission of the members' average, read it back and check it. Raises UserError.

    Returns the answers in the file: they are scored, not what was meant to be written.
    """
    if len(members[0]) != lines:
        raise UserError(
            f"the split has {len(members[0]):,} images, but a submission has {lines:,} lines: "
            "give the whole split, or the number of images with --lines"
        )
    text = "".join(" ".join(map(str, row)) + "\n" for rows in answers(members) for row in ids[rows].tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return read(path, lines, set(ids.tolist()))


def read(path: Path, lines: int, valid: set[int]) -> list[list[int]]:
    """Read the answers in a submission file, best first. Raises UserError, with the line, if the file is no submission."""
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the submission {path} cannot be read ({error})") from None
    if len(rows) != lines:
        raise UserError(f"the submission {path} has {len(rows):,} lines, not {lines:,}")
    result = []
    for number, row in enumerate(rows, start=1):
        words = row.split()
        answer = [int(word) for word in words if word.isdigit()]
        if not 1 <= len(words) <= ANSWERS or len(set(answer)) != len(words) or not set(answer) <= valid:
            raise UserError(f"line {number} of {path} is not 1 to {ANSWERS} different class ids: '{row}'")
        result.append(answer)
    return result


def read_ground_truth(path: Path, lines: int) -> list[int]:
    """Read the development kit's ILSVRC2012_validation_ground_truth.txt, one class id per image. Raises UserError."""
    try:
        ids = [int(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise UserError(f"the ground truth {path} cannot be read ({error}): give one class id per line") from None
    if len(ids) != lines:
        raise UserError(f"the ground truth {path} has {len(ids):,} ids for {lines:,} images: give that of this split")
    return ids


def ground_truth(split: Split, ids: NDArray[np.int64]) -> list[int] | None:
    """Return the class id of every image from the dataset's labels; None if the split has none."""
    if (split.labels == UNLABELLED).any():
        return None
    return ids[split.labels].tolist()


def errors(rows: Sequence[Sequence[int]], truth: Sequence[int]) -> tuple[float, float]:
    """Return top-1 and top-5 error in percent of the answers in a file, counted line by line."""
    top1 = sum(row[0] != true for row, true in zip(rows, truth, strict=True))
    top5 = sum(true not in row for row, true in zip(rows, truth, strict=True))
    return 100 * top1 / len(truth), 100 * top5 / len(truth)
