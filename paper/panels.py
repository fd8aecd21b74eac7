"""The figures of an experiment: its runs' curves in the paper's axes, with the paper's end points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from paper import published as paper
from paper.reading import find
from paper.results import TableRow
from paper.runs import curves
from paper.spec import Experiment
from pipeline.base.layout import METRICS
from pipeline.evaluation.figures import Curve, Panel, response_panels
from pipeline.evaluation.responses import Responses
from pipeline.evaluation.responses import read as read_responses
from pipeline.tracking import read_metrics

PAPER_COLUMN = "paper, test"
LAST_POINTS = 10  # log points whose mean is given as a run's training error


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """A net of a figure in words: what its line shows, for readers who do not see it. None where it has no line."""

    label: str
    status: str
    figures: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One figure: its panels (those without any line left out), columns and rows of its table, what has to be said."""

    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[FigureRow, ...]
    notes: tuple[str, ...]


def error_figure(experiment: Experiment, results: Sequence[TableRow], scale: float) -> FigureData:
    """Training and test error over the iterations (Figs. 1, 4, 6), of every run that is not conflicting."""
    drawn: dict[str, list[Curve]] = {}
    for result in results:
        state = result.runs[0].state
        if state.kind not in ("not run", "conflicting"):
            drawn[result.row.label] = curves(result.row.label, read_metrics(state.folder / METRICS))
    axes, marks = paper.FIGURES.get(experiment.name), _marks(experiment)
    panels = []
    labels = [result.row.label for result in results]
    for number, (title, wanted) in enumerate(axes.panels if axes else [("training and val error", labels)]):
        shown = [curve for net in wanted for curve in drawn.get(net, [])]
        if axes and axes.kinds:  # a panel of training errors alone has no other line to be told from: drawn bold
            shown = [replace(curve, kind="test") for curve in shown if curve.kind == axes.kinds[number]]
        panel = Panel(
            title=title,
            x_label="iterations (1e4)",
            y_label="error (%)",
            nets=wanted,
            curves=shown,
            marks=[(net, marks[net]) for net in wanted if net in marks and net in labels],
            x_limits=(0, axes.x_limits[1] * scale) if axes else None,
            y_limits=axes.y_limits if axes and scale == 1 else None,  # a rehearsal's errors lie above the paper's axes
        )
        panels += [panel] if shown else []
    rows = [_error_row(result, drawn.get(result.row.label, []), marks.get(result.row.label)) for result in results]
    columns = ("training error %", "test error %", *((PAPER_COLUMN,) if marks else ()))
    if not marks:
        rows = [replace(row, figures=row.figures[:2]) for row in rows]
    notes = [axes.mark_note] if axes and axes.mark_note else []
    return FigureData(panels=tuple(panels), columns=columns, rows=tuple(rows), notes=tuple(notes))


def response_figure(results: Sequence[TableRow]) -> FigureData:
    """Standard deviations of layer responses (Fig. 7), of every finished run whose responses were measured."""
    found: dict[str, Responses] = {}
    rows = []
    for result in results:
        run, label = result.runs[0], result.row.label
        measured = read_responses(run.state.folder) if run.source else None
        if measured is not None:
            found[label] = measured
        std = found[label].std if label in found else None
        figures = (None,) * 4 if std is None else (float(len(std)), min(std), float(np.median(std)), max(std))
        rows.append(FigureRow(label=label, status=result.status, figures=figures))
    splits = sorted({f"{one.images:,} images of {one.split}, {one.weights} weights" for one in found.values()})
    notes = [f"Measured on {' and '.join(splits)}."] if splits else []
    panels = response_panels({label: one.std for label, one in found.items()}) if found else []
    columns = ("3x3 layers", "least std", "median std", "greatest std")
    return FigureData(panels=tuple(panels), columns=columns, rows=tuple(rows), notes=tuple(notes))


def _marks(experiment: Experiment) -> dict[str, float]:
    """The paper's test errors, by label: those of the rows themselves, or of the table that has them."""
    axes = paper.FIGURES.get(experiment.name)
    source = find(axes.marks_from) if axes and axes.marks_from else experiment
    return {row.label: row.paper["top1_error"] for row in source.rows if "top1_error" in row.paper}


def _error_row(result: TableRow, lines: Sequence[Curve], mark: float | None) -> FigureRow:
    ends: dict[str, float] = {}
    for curve in lines:
        ends[curve.kind] = float(curve.y[-LAST_POINTS:].mean() if curve.kind == "train" else curve.y[-1])
    return FigureRow(label=result.row.label, status=result.status, figures=(ends.get("train"), ends.get("test"), mark))
