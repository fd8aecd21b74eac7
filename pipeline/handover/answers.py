"""What `pipeline.predict` writes of its answers, block by block: a table, a CSV file, and the figures of --json."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.base.command import UserError
from pipeline.base.files import check_replaceable, replacing
from pipeline.base.output import shown
from pipeline.base.tables import print_table
from pipeline.data.images import SUFFIXES, UNREAD_SUFFIXES
from pipeline.handover.prediction import BLOCK, Answer, Prediction, Predictor

Report = Callable[[Prediction], None]  # takes one prediction after the other
STDOUT = "-"
COLUMNS = ("picture", "rank", "class", "score", "label", "wnid", "error")


@contextmanager
def table(predictor: Predictor) -> Iterator[Report]:
    """Tables on standard output, of BLOCK pictures at most: of thousands, the first are seen while others are read."""
    trained, data = predictor.trained, predictor.data
    title = f"{trained.arch} ({trained.checkpoint.name}), {len(data.classes):,} classes of {data.name}"
    block: list[Prediction] = []

    def print_block() -> None:
        if rows := [row for prediction in block for row in _table_rows(prediction)]:
            print_table(title, ("picture", "class", "score %"), rows)
        block.clear()

    def add(prediction: Prediction) -> None:
        block.append(prediction)
        if len(block) == BLOCK:
            print_block()

    yield add
    print_block()


def _table_rows(prediction: Prediction) -> Iterator[tuple[str, str, str]]:
    for place, answer in enumerate(prediction.answers):
        yield "" if place else prediction.name, answer.name, f"{100 * answer.score:.2f}"


def check_csv(file: Path, pictures: Sequence[Path]) -> None:
    """Raise UserError where a CSV file would take the place of a picture, or of what is no file. Writes nothing."""
    name = shown(file)
    if file.suffix.lower() in (*SUFFIXES, *UNREAD_SUFFIXES):
        raise UserError(
            f"--csv names the file to write, and {name} is a picture's name: give another, such as answers.csv"
        )
    if os.path.exists(file) and any(_are_one(picture, file) for picture in pictures):
        raise UserError(
            f"--csv names the file to write, and {name} is one of the pictures: give another, such as answers.csv"
        )
    try:
        check_replaceable(file)
    except IsADirectoryError:
        raise UserError(
            f"--csv names the file to write, and {name} is a folder: give another, such as answers.csv"
        ) from None
    except OSError as error:
        raise UserError(f"--csv {name}: {error.strerror}; --csv - writes to standard output") from None


def _are_one(picture: Path, file: Path) -> bool:
    try:
        return picture.samefile(file)
    except OSError:  # a picture that is not there; asking the net says so
        return False


@contextmanager
def csv_file(place: str) -> Iterator[Report]:
    """A CSV file in UTF-8, or standard output (STDOUT): a row for each picture and rank, with the score from 0 to 1; for a
    picture that cannot be read, one row with the reason.

    A file appears when it is complete. File names that are not UTF-8 keep their bytes in it.
    """
    with nullcontext() if place == STDOUT else replacing(Path(place)) as file:

        def write(rows: Iterable[tuple[object, ...]]) -> None:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows(rows)
            if file is None:
                sys.stdout.write(text.getvalue())
            else:
                file.write(text.getvalue().encode(errors="surrogateescape"))

        write([COLUMNS])
        yield lambda prediction: write(_rows_of(prediction))


def _rows_of(prediction: Prediction) -> Iterator[tuple[object, ...]]:
    if prediction.reason:
        yield (prediction.name, *[""] * (len(COLUMNS) - 2), prediction.reason)
    for rank, answer in enumerate(prediction.answers, 1):
        yield prediction.name, rank, answer.name, answer.score, answer.label, answer.wnid, ""


class Figures:
    """What --json says. listed: whether it holds each picture's answers, or only how many pictures there were."""

    def __init__(self, predictor: Predictor, *, listed: bool) -> None:
        self.net = {"net": predictor.trained.name, "arch": predictor.trained.arch}
        self.listed = listed
        self.pictures: list[dict[str, Any]] = []
        self.read, self.unreadable = 0, 0

    def add(self, prediction: Prediction) -> None:
        if prediction.reason:
            self.unreadable += 1
        else:
            self.read += 1
        if self.listed:
            self.pictures.append({"picture": prediction.name, **_outcome_of(prediction)})

    def sentence(self, file: str) -> str:
        """What was written to `file`."""
        left = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        return f"{shown(file)} names what {self.read:,} {'picture shows' if self.read == 1 else 'pictures show'}{left}"

    def of(self, file: str | None) -> dict[str, Any]:
        """The object. file: of the answers, where they are not in it."""
        if file is None:
            return {**self.net, "pictures": self.pictures}
        return {**self.net, "csv": file, "read": self.read, "unreadable": self.unreadable}


def _outcome_of(prediction: Prediction) -> dict[str, Any]:
    if prediction.reason:
        return {"error": prediction.reason}
    return {"classes": [_figures_of(answer) for answer in prediction.answers]}


def _figures_of(answer: Answer) -> dict[str, Any]:
    return {"label": answer.label, "wnid": answer.wnid, "class": answer.name, "score": answer.score}
