"""Shows what a net gets wrong: errors per class, confusions of classes, and its most confident mistakes as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.base.files import replacing, write_text
from pipeline.base.output import shown
from pipeline.data.dataset import Split
from pipeline.evaluation.scores import Scores, ranks_of

THUMBNAIL = 160  # pixels; an image keeps its aspect ratio inside
CAPTION = 44  # pixels: three lines
COLUMNS = 6
MARGIN = 8
BACKGROUND, INK, WRONG = "white", "black", "#b00020"


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """One class: how many images it has, and how many of them the net gets wrong (top-1, top-5)."""

    label: int
    images: int
    top1_wrong: int
    top5_wrong: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """`count` images of class `true` are classified as `predicted`."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One image: sample id, true class, predicted class, and the predicted class's softmax score (0..1)."""

    sample: int
    true: int
    predicted: int
    score: float


def class_errors(scores: Scores) -> list[ClassErrors]:
    """Return the errors of every class that has images, worst first: by top-1 error rate, then top-5, then label."""
    ranks = ranks_of(scores)
    counts = [np.bincount(scores.labels[ranks >= k], minlength=scores.classes) for k in (0, 1, 5)]  # 0: all images
    errors = [
        ClassErrors(label=label, images=int(n), top1_wrong=int(top1), top5_wrong=int(top5))
        for label, (n, top1, top5) in enumerate(zip(*counts, strict=True))
        if n
    ]
    return sorted(errors, key=lambda row: (-row.top1_wrong / row.images, -row.top5_wrong / row.images, row.label))


def confusions(scores: Scores) -> list[Confusion]:
    """Return all pairs (true class, wrong answer) that occur, the most frequent first."""
    predicted = _predicted(scores)
    wrong = predicted != scores.labels
    pairs, counts = np.unique(np.stack([scores.labels[wrong], predicted[wrong]], 1), axis=0, return_counts=True)
    result = [Confusion(true=int(t), predicted=int(p), count=int(n)) for (t, p), n in zip(pairs, counts, strict=True)]
    return sorted(result, key=lambda pair: (-pair.count, pair.true, pair.predicted))


def confident_mistakes(scores: Scores, count: int) -> list[Mistake]:
    """Return the `count` wrong answers with the highest scores, the highest first."""
    predicted = _predicted(scores)
    wrong = np.flatnonzero(predicted != scores.labels)
    confidence = scores.scores[wrong, predicted[wrong]].astype(np.float32)
    chosen = wrong[np.argsort(-confidence, kind="stable")[:count]]
    return [
        Mistake(
            sample=int(scores.ids[row]),
            true=int(scores.labels[row]),
            predicted=int(predicted[row]),
            score=float(scores.scores[row, predicted[row]]),
        )
        for row in chosen
    ]


def _predicted(scores: Scores) -> NDArray[np.int64]:
    return scores.scores.argmax(axis=1)  # the first of equal scores, as `scores.ranks` orders them


def write_tables(folder: Path, scores: Scores, names: Sequence[str]) -> list[Path]:
    """Write classes.csv and confusions.csv into `folder`, which is made if needed; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [
        (row.label, names[row.label], row.images, row.top1_wrong, row.top5_wrong, f"{100 * row.top1_wrong / row.images:.2f}")
        for row in class_errors(scores)
    ]  # fmt: skip
    pairs = [(row.count, row.true, names[row.true], row.predicted, names[row.predicted]) for row in confusions(scores)]
    class_columns = ("label", "class", "images", "top1_wrong", "top5_wrong", "top1_error_percent")
    pair_columns = ("images", "label", "class", "predicted_label", "predicted_class")
    return [
        _write_csv(folder / "classes.csv", class_columns, classes),
        _write_csv(folder / "confusions.csv", pair_columns, pairs),
    ]


def write_sheet(path: Path, mistakes: Sequence[Mistake], split: Split, names: Sequence[str]) -> Path:
    """Write the mistakes as one PNG: each image with its class, the net's answer and the answer's score."""
    rows = -(-len(mistakes) // COLUMNS)
    cell = (THUMBNAIL + MARGIN, THUMBNAIL + CAPTION + MARGIN)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, max(rows, 1) * cell[1] + MARGIN), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, mistake in enumerate(mistakes):
        x, y = MARGIN + number % COLUMNS * cell[0], MARGIN + number // COLUMNS * cell[1]
        with Image.open(io.BytesIO(split.read(mistake.sample))) as image:
            thumbnail = image.convert("RGB")
        scale = THUMBNAIL / max(thumbnail.size)
        thumbnail = thumbnail.resize((max(1, round(thumbnail.width * scale)), max(1, round(thumbnail.height * scale))))
        sheet.paste(thumbnail, (x + (THUMBNAIL - thumbnail.width) // 2, y + (THUMBNAIL - thumbnail.height) // 2))
        lines = ((names[mistake.true], INK), (f"{names[mistake.predicted]} {mistake.score:.1%}", WRONG))
        key = split.samples["key"][mistake.sample].decode(errors="surrogateescape")
        for line, (text, colour) in enumerate((*lines, (key, "grey"))):
            pen.text((x, y + THUMBNAIL + 14 * line), _fitting(shown(text), font), fill=colour, font=font)
    with replacing(path) as file:
        sheet.save(file, "PNG")
    return path


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > THUMBNAIL:
        text = text[:-2] + "…"
    return text


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return path
