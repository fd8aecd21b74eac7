"""Lay the curves of runs over one another: python -m pipeline.curves runs/A runs/B --out curves.svg"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paper.runs import curves
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.base.files import write_text
from pipeline.base.layout import METRICS
from pipeline.evaluation.figures import Panel, standalone
from pipeline.tracking import read_metrics
from pipeline.tracking.journal import Record

EXAMPLE = "python -m pipeline.curves runs/resnet20-seed0 runs/resnet56-seed0 --out curves.svg"
COMPARED = {"train": ("loss", "top1_error"), "val": ("top1_error", "top5_error")}


def options() -> CommandParser:
    made = CommandParser(
        "Draws training (thin) and val error (bold) of runs over one another, and compares them.", EXAMPLE
    )
    made.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders; the first is what others are compared with"
    )
    made.add_argument("--out", type=Path, default=Path("curves.svg"), help="the SVG file (default curves.svg)")
    made.add_argument("--until", type=int, metavar="N", help="leave out what comes after iteration N")
    made.add_argument("--title", default="Training and val error", help="of the figure")
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    records = {run.name: _metrics(run, own.until) for run in own.runs}
    if len(records) < len(own.runs):
        raise UserError("two of the runs have the same name: the figure could not tell them apart; give each run once")
    drawn = [curve for name, found in records.items() for curve in curves(name, found)]
    panel = Panel(title=own.title, x_label="iterations (1e4)", y_label="error (%)", nets=list(records), curves=drawn)
    write_text(own.out, standalone([panel], own.title, "curves"))
    first, *_ = records.values()
    rows = [{"run": name, **summary(found, first)} for name, found in records.items()]
    print(f"Written: {own.out}")
    columns = ("run", "iterations", "train error %", "val error %", "points in common", "largest difference")
    print_table("Curves; differences from the first run", columns, [tuple(map(_text, row.values())) for row in rows])
    if own.json:
        print_json({"figure": str(own.out), "runs": rows})
    return 0


def summary(records: Sequence[Record], first: Sequence[Record]) -> dict[str, float | int | None]:
    """Where a run stands, and its largest difference from `first` in any figure of `COMPARED`; 0.0 means equal bits."""
    ends = {record.kind: record.values.get("top1_error") for record in records}
    mine, theirs = (_values(series) for series in (records, first))
    common = sorted(mine.keys() & theirs.keys())
    differences = [abs(mine[key] - theirs[key]) for key in common]
    return {
        "iterations": max((record.iteration for record in records), default=0),
        "train_error": ends.get("train"),
        "val_error": ends.get("val"),
        "points": len(common),
        "largest_difference": float(np.max(differences)) if differences else None,
    }


def _values(records: Sequence[Record]) -> dict[tuple[str, int, str], float]:
    return {
        (record.kind, record.iteration, name): record.values[name]
        for record in records
        for name in COMPARED.get(record.kind, ())
        if name in record.values
    }


def _metrics(run: Path, until: int | None) -> list[Record]:
    found = read_metrics(run / METRICS)
    if not found:
        raise UserError(f"{run} has no metrics ({METRICS}): give the folder of a run that has begun to train")
    return [record for record in found if until is None or record.iteration <= until]


def _text(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
