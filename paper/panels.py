"""The figures of an experiment: the curves of its runs in the paper's axes, with the paper's errors at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paper.reading import find
from paper.rows import RowResult
from paper.runs import curves
from paper.spec import Experiment, PanelSpec
from pipeline.base.layout import METRICS
from pipeline.evaluation.figures import Curve, Panel, response_panels
from pipeline.tracking import read_metrics

PAPER_COLUMN = "paper, test"
UNIT = 1e4  # iterations, of the axes in experiment files
LAST_POINTS = 10  # log points whose mean is given as a run's training error


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One figure: its panels (none without curves), the same in numbers, and notes for the caption.

    rows: for each of the experiment's rows the numbers in `columns`; None where there is no curve.
    """

    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...]
    notes: tuple[str, ...]


def error_figure(experiment: Experiment, results: Sequence[RowResult], scale: float) -> FigureData:
    """Training and test error over the iterations (Figs. 1, 4, 6), of every run that is not conflicting."""
    drawn: dict[str, list[Curve]] = {}
    for result in results:
        state = result.runs[0].state
        if state.kind not in ("not run", "conflicting"):
            drawn[result.row.label] = curves(result.row.label, read_metrics(state.folder / METRICS))
    labels = tuple(result.row.label for result in results)
    marks = _marks(experiment)
    ours = {label: mark for label, mark in marks.items() if label in labels}
    specs = experiment.figure.panels or (PanelSpec(title="training and val error", rows=labels),)
    panels = [_error_panel(experiment, spec, drawn, ours, scale) for spec in specs]
    columns = ("training error %", "test error %", *((PAPER_COLUMN,) if marks else ()))
    rows = [(*_ends(drawn.get(label, [])), marks.get(label))[: len(columns)] for label in labels]
    return FigureData(
        panels=tuple(panel for panel in panels if panel.curves),
        columns=columns,
        rows=tuple(rows),
        notes=(experiment.figure.mark_note,) if experiment.figure.mark_note else (),
    )


def _error_panel(
    experiment: Experiment, spec: PanelSpec, drawn: Mapping[str, list[Curve]], marks: Mapping[str, float], scale: float
) -> Panel:
    """One panel; of a rehearsal with a shorter x axis and a y axis of its own, for its errors are above the paper's."""
    lines = [curve for label in spec.rows for curve in drawn.get(label, [])]
    if spec.kind is not None:  # the only kind of curve in its panel is drawn bold
        lines = [replace(curve, kind="test") for curve in lines if curve.kind == spec.kind]
    x_limits, y_limits = experiment.figure.x_limits, experiment.figure.y_limits
    return Panel(
        title=spec.title,
        x_label="iterations",
        y_label="error (%)",
        nets=spec.rows,
        curves=lines,
        marks=[(label, marks[label]) for label in spec.rows if label in marks],
        iterations=True,
        x_limits=(x_limits[0] * UNIT * scale, x_limits[1] * UNIT * scale) if x_limits else None,
        y_limits=y_limits if scale == 1 else None,
    )


def response_figure(results: Sequence[RowResult]) -> FigureData:
    """Standard deviations of layer responses (Fig. 7), of every finished run whose responses are measured."""
    stds: dict[str, tuple[float, ...]] = {}
    sources: set[str] = set()
    rows: list[tuple[float | None, ...]] = []
    for result in results:
        measured = result.runs[0].responses
        if measured is None:
            rows.append((None,) * 4)
            continue
        std = stds[result.row.label] = measured.std
        rows.append((float(len(std)), min(std), float(np.median(std)), max(std)))
        sources.add(f"{measured.images:,} images of {measured.split}, {measured.weights} weights")
    return FigureData(
        panels=tuple(response_panels(stds) if stds else []),
        columns=("3x3 layers", "least std", "median std", "greatest std"),
        rows=tuple(rows),
        notes=(f"Measured on {' and '.join(sorted(sources))}.",) if sources else (),
    )


def _marks(experiment: Experiment) -> dict[str, float]:
    """The paper's test errors by label: those of the rows, or of the experiment that `marks_from` names."""
    source = find(experiment.figure.marks_from) if experiment.figure.marks_from else experiment
    return {row.label: row.paper["top1_error"] for row in source.rows if "top1_error" in row.paper}


def _ends(lines: Sequence[Curve]) -> tuple[float | None, float | None]:
    """Training and test error at the end of a run's curves."""
    ends = {line.kind: float(line.y[-LAST_POINTS:].mean() if line.kind == "train" else line.y[-1]) for line in lines}
    return ends.get("train"), ends.get("test")
