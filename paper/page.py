"""The report page: one HTML file that asks the network for nothing; tables, inline SVG figures, a card for each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from paper.panels import LAST_POINTS, PAPER_COLUMN, FigureData
from paper.rows import Line, RowResult
from paper.runs import RunFacts
from paper.spec import Experiment, OtherMethod
from paper.state import RunState
from pipeline.evaluation.figures import css, svg

TEMPLATE = "report.html.j2"
PLOT_WIDTH = 120.0  # of the small plot of an interval, in the units of its viewBox


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment at one scale: its evaluated rows and, for curves and responses, its figure."""

    experiment: Experiment
    scale: float
    rows: tuple[RowResult, ...]
    figure: FigureData | None

    @property
    def anchor(self) -> str:
        return self.experiment.name if self.scale == 1 else f"{self.experiment.name}-scale{self.scale:g}"

    @property
    def runs(self) -> int:
        return len(self.experiment.runs)

    @property
    def states(self) -> list[RunState]:
        """The state of every run, once each."""
        return list({run.spec: run.state for row in self.rows for run in row.runs}.values())

    @property
    def finished(self) -> int:
        return sum(state.kind == "finished" for state in self.states)

    @property
    def schedule(self) -> str:
        """`shortened to 25% of the paper's schedule`, or nothing."""
        return "" if self.scale == 1 else f"shortened to {100 * self.scale:g}% of the paper's schedule"

    @property
    def heading(self) -> str:
        return f"{self.experiment.place}. {self.experiment.title}" + (f", {self.schedule}" if self.schedule else "")

    @property
    def notes(self) -> tuple[str, ...]:
        """The experiment's note, and the notes that all rows with a figure of ours share."""
        rows = [row.notes for row in self.rows if row.measured]
        shared = [note for note in (rows[0] if rows else ()) if len(rows) > 1 and all(note in one for one in rows)]
        sentences = [*([self.experiment.note] if self.experiment.note else []), *shared]
        return tuple(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)

    def lines_of(self, row: RowResult) -> tuple[Line, ...]:
        """The row's lines in the table: top-5 errors only where the paper gives some. A figure has a table of its own."""
        if self.figure is not None:
            return ()
        top5 = any("top5_error" in other.paper for other in self.experiment.rows)
        return (*(line for line in row.lines if top5 or line.name != "top5_error"), *row.one_crop)

    def notes_of(self, row: RowResult) -> list[str]:
        """The notes of one row alone; before them, where only a part of its runs is finished, how far they are."""
        partly = row.measured and any(run.state.kind != "finished" for run in row.runs)
        shared = {note.lower() for note in self.notes}
        return [note for note in (*((row.status,) if partly else ()), *row.notes) if f"{note}.".lower() not in shared]

    @property
    def others(self) -> Sequence[OtherMethod]:
        return self.experiment.others if self.scale == 1 else ()

    @property
    def measured(self) -> bool:
        """Whether the table has a figure of ours."""
        return any(line.ours is not None for row in self.rows for line in self.lines_of(row))

    @property
    def caption(self) -> str:
        assert self.figure is not None
        training = "training error, with augmentation, over the updates between two log points"
        if self.experiment.measure == "responses":
            text = "Standard deviation of each 3x3 layer's output over images, channels and positions, after BN and before "
            text += "ReLU and addition: in layer order, and sorted."
        elif any("train" in {curve.kind for curve in panel.curves} for panel in self.figure.panels):
            text = f"Dashed: {training}. Bold: test error."
        else:
            text = f"{training.capitalize()}; test error."
        if any(panel.marks for panel in self.figure.panels):
            text += " Diamonds: the paper's errors at the end."
        return " ".join([text, *self.figure.notes])

    @property
    def table_caption(self) -> str:
        match self.experiment.measure:
            case "responses":
                return "Standard deviations over the 3x3 layers."
            case "curve":
                return f"Errors at the end of each curve; the training error is the mean of the last {LAST_POINTS} log points."
        weights = ", BN statistics recomputed after training" if self.experiment.weights == "recomputed-bn" else ""
        return f"Error in %, {self.experiment.protocols[0]} on {self.experiment.split}{weights}."


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """One run: its state; unless it is conflicting, its facts and how its config deviates from the paper's recipe.

    place: the folder that its links lead to. recipe: the config file with the paper's recipe, to which the experiment's
    overrides belong too.
    """

    state: RunState
    place: Path
    facts: RunFacts | None
    deviations: tuple[str, ...]
    recipe: str


def render(
    sections: Sequence[Section], cards: Sequence[RunCard], warnings: Sequence[str], origin: str, out: Path
) -> str:
    """The page as text. origin: date and source of the page. out: the page's path, for relative links."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )

    def link(path: Path) -> str:
        return quote(os.path.relpath(path.absolute(), out.absolute().parent))

    environment.filters |= {"number": number, "signed": signed, "link": link}
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        cards=cards,
        warnings=warnings,
        origin=origin,
        css=Markup(css()),
        paper_column=PAPER_COLUMN,
        figures={section.anchor: _elements(section) for section in sections if section.figure},
        plot=lambda line, section: _interval_plot(line, _range(section)),
    )


def number(value: float | None, digits: int = 2) -> str:
    """Two decimals, as in the paper; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001 - a dash for people


def signed(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:+.2f}".replace("-", "−")  # noqa: RUF001 - a minus as wide as the plus


def _elements(section: Section) -> list[Markup]:
    """Each panel as an <svg> of its own: on a phone the panels go below one another."""
    assert section.figure is not None
    return [
        Markup(svg([panel], f"{section.heading}: {panel.title}", f"{section.anchor.replace('.', '-')}-{number}"))
        for number, panel in enumerate(section.figure.panels)
    ]


def _range(section: Section) -> tuple[float, float] | None:
    """The lowest and highest error of the section's small plots; None where there is nothing to plot."""
    lines = [line for row in section.rows for line in section.lines_of(row) if line.ours is not None]
    values = [value for line in lines for value in (line.ours, line.paper, *(line.interval or ())) if value is not None]
    return (min(values), max(values)) if values else None


def _interval_plot(line: Line, reach: tuple[float, float] | None) -> Markup:
    """A small plot: our error (dot) in its interval (bar), and the paper's (diamond), on the scale of the whole table."""
    if reach is None or line.ours is None:
        return Markup("")
    low, high = reach

    def place(value: float) -> float:
        return 8 + (PLOT_WIDTH - 16) * (value - low) / max(high - low, 1e-9)

    spread = (line.ours - line.spread, line.ours + line.spread) if line.spread is not None else None
    parts = []
    if bounds := line.interval or spread:
        parts.append(f'<path class="bar" d="M{place(bounds[0]):.1f} 8H{place(bounds[1]):.1f}"/>')
    parts.append(f'<circle class="ours" cx="{place(line.ours):.1f}" cy="8" r="3.5"/>')
    if line.paper is not None:
        parts.append(f'<path class="paper" d="M{place(line.paper):.1f} 3l5 5-5 5-5-5z"/>')
    return Markup(f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH:g} 16" aria-hidden="true">{"".join(parts)}</svg>')
