"""The report as plain values, for --json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from paper.others import OtherRun, Others
from paper.section import Section


def of_sections(sections: Sequence[Section]) -> dict[str, Any]:
    """The experiments by anchor: their rows, lines and figures."""
    figures: dict[str, Any] = {}
    for section in sections:
        rows = []
        for row in section.rows:
            lines = [{**dataclasses.asdict(line), "difference": line.difference} for line in section.lines_of(row)]
            runs = [{"run": str(run.state.folder), "state": run.text} for run in row.runs]
            rows.append(
                {"label": row.row.label, "status": row.status, "lines": lines, "notes": row.notes, "runs": runs}
            )
        figures[section.anchor] = {"place": section.experiment.place, "scale": section.scale, "rows": rows}
        if section.figure is not None:
            figures[section.anchor]["figure"] = {
                "columns": section.figure.columns,
                "rows": {row["label"]: values for row, values in zip(rows, section.figure.rows, strict=True)},
            }
    return figures


def of_others(others: Others) -> dict[str, Any]:
    """The runs of no experiment by dataset, and the folders that are not shown."""
    return {
        "datasets": [
            {**dataclasses.asdict(group.data), "runs": [_of_run(run) for run in group.runs]} for group in others.groups
        ],
        "of_experiments_not_shown": {name: list(map(str, paths)) for name, paths in others.unselected.items()},
        "no_runs": [str(path) for path in others.strangers],
        "sentences": others.sentences,
    }


def _of_run(run: OtherRun) -> dict[str, Any]:
    tests = [
        {
            "protocol": test.protocol,
            "weights": test.weights,
            "split": test.split,
            "images": test.measured.images,
            **test.measured.figures,
            "intervals": dict(test.measured.intervals),
        }
        for test in run.tests
    ]
    return {
        "run": str(run.folder),
        "net": run.net,
        "state": run.status,
        "errors": tests,
        "members": run.members,
        "notes": run.notes,
    }
