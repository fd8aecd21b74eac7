"""Lay the curves of runs over one another: python -m pipeline.curves runs/A runs/B --out curves.svg"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paper.command_lines import curves_options
from paper.runs import curves
from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import METRICS
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation.figures import Panel, standalone
from pipeline.tracking import Record, read_metrics

COMPARED = {"train": ("loss", "top1_error"), "val": ("top1_error", "top5_error")}


def main(argv: Sequence[str] | None = None) -> int:
    args = curves_options().parse_args(argv)
    records = {run.name: _metrics(run, args.until) for run in args.runs}
    if len(records) < len(args.runs):
        raise UserError("two of the runs have the same name, which the figure cannot tell apart: give each run once")
    drawn = [curve for name, metrics in records.items() for curve in curves(name, metrics)]
    panel = Panel(title=args.title, x_label="iterations", y_label="error (%)", nets=list(records), curves=drawn,
                  iterations=True)  # fmt: skip
    write_text(args.out, standalone([panel], args.title, "curves"))
    first, *_ = records.values()
    rows = [{"run": name, **summary(metrics, first)} for name, metrics in records.items()]
    print(f"Written: {args.out}")
    columns = ("run", "iterations", "train error %", "val error %", "points in common", "largest difference")
    print_table("Curves; differences from the first run", columns, [tuple(map(_text, row.values())) for row in rows])
    if args.json:
        print_json({"figure": str(args.out), "runs": rows})
    return 0


def summary(records: Sequence[Record], first: Sequence[Record]) -> dict[str, float | int | None]:
    """A run's last errors, and its largest difference from `first` in any figure of `COMPARED`; 0.0 means equal bits."""
    ends = {record.kind: record.values.get("top1_error") for record in records}
    values, reference = _values(records), _values(first)
    common = sorted(values.keys() & reference.keys())
    differences = [abs(values[key] - reference[key]) for key in common]
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
    records = read_metrics(run / METRICS)
    if not records:
        raise UserError(f"{run} has no metrics ({METRICS}): give the folder of a run that has begun to train")
    return [record for record in records if until is None or record.iteration <= until]


def _text(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
