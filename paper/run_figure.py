"""The learning curves of runs that belong to no experiment: a figure for each dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paper.others import Group, OtherRun
from paper.panels import FigureData
from pipeline.evaluation.figures import Panel

PANEL = 6  # runs in a panel, as many as there are colours
MOST = 12  # runs in a figure, of 20 kB each at most
LABEL = 22  # characters of a run's name beside its curve, which a phone has room for


def curves_of(group: Group) -> FigureData | None:
    """Training and val error of the runs on one dataset, the lowest val errors first; None where no run has a curve."""
    runs = [run for run in group.runs if run.curves]
    if not runs:
        return None
    shown = runs[:MOST]
    notes = []
    if len(shown) < len(runs):
        notes.append(
            f"Drawn are the {len(shown)} of {len(runs)} runs with the lowest val errors; "
            "python -m pipeline.curves draws any others."
        )
    panels = [_panel(shown[start : start + PANEL]) for start in range(0, len(shown), PANEL)]
    return FigureData(panels=tuple(panels), columns=(), rows=(), notes=tuple(notes))


def _panel(runs: Sequence[OtherRun]) -> Panel:
    labels = _labels([run.name for run in runs])
    drawn = [replace(curve, net=label) for run, label in zip(runs, labels, strict=True) for curve in run.curves]
    return Panel(
        title="training and val error",
        x_label="iterations",
        y_label="error (%)",
        nets=labels,
        curves=drawn,
        iterations=True,
    )


def _labels(names: Sequence[str]) -> list[str]:
    """The names, long ones without their middle, and numbered where two would then be equal."""
    half = LABEL // 2
    short = [name if len(name) <= LABEL else f"{name[:half]}…{name[1 - half :]}" for name in names]
    return [text if short.count(text) == 1 else f"{text} {i}" for i, text in enumerate(short, start=1)]
