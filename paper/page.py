"""The report page: one HTML file that asks the network for nothing; tables, inline SVG figures, a card for each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from paper import published as paper
from paper.panels import LAST_POINTS, PAPER_COLUMN, FigureData
from paper.results import Line, TableRow
from paper.runs import RunFacts
from paper.spec import Experiment
from paper.state import RunState
from pipeline.evaluation.figures import css, svg

TEMPLATE = "report.html.j2"
PLOT_WIDTH = 120.0  # of the small plot of an interval, in the units of its viewBox


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment at one scale: its rows as they stand and, for curves and responses, its figure."""

    experiment: Experiment
    scale: float
    rows: tuple[TableRow, ...]
    figure: FigureData | None

    @property
    def anchor(self) -> str:
        return self.experiment.name if self.scale == 1 else f"{self.experiment.name}-scale{self.scale:g}"

    @property
    def runs(self) -> int:
        return len(self.experiment.runs)

    @property
    def states(self) -> list[RunState]:
        """Of every run, once each."""
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
        """The experiment's note, and those that all rows with a figure of ours share."""
        rows = [row.notes for row in self.rows if any(line.ours is not None for line in row.lines)]
        shared = [note for note in (rows[0] if rows else ()) if len(rows) > 1 and all(note in one for one in rows)]
        sentences = [*([self.experiment.note] if self.experiment.note else []), *shared]
        return tuple(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)

    def notes_of(self, row: TableRow) -> list[str]:
        """What has to be said of one row alone."""
        said = {note.lower() for note in self.notes}
        return [note for note in row.shown_notes if f"{note}.".lower() not in said]

    @property
    def others(self) -> Sequence[paper.OtherMethod]:
        return paper.OTHERS.get(self.experiment.name, ()) if self.scale == 1 else ()

    @property
    def measured(self) -> bool:
        """Whether there is anything of ours to plot."""
        return any(line.ours is not None for row in self.rows for line in row.lines)

    @property
    def caption(self) -> str:
        """Of the figure."""
        assert self.figure is not None
        if self.experiment.measure == "responses":
            text = "Standard deviation of each 3x3 layer's output over images, channels and positions, after BN and before "
            text += "ReLU and addition: in layer order, and sorted."
        elif any("train" in {curve.kind for curve in panel.curves} for panel in self.figure.panels):
            text = (
                "Dashed: training error, with augmentation, over the updates between two log points. Bold: test error."
            )
        else:
            text = "Training error, with augmentation, over the updates between two log points; test error."
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
        return f"Error in %, {self.protocol}."

    @property
    def protocol(self) -> str:
        """`ten-crop on val, BN statistics recomputed after training`."""
        weights = ", BN statistics recomputed after training" if self.experiment.weights == "recomputed-bn" else ""
        return f"{self.experiment.protocols[0]} on {self.experiment.split}{weights}"


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """One run: its state, and where it is not conflicting its facts and how it strays from the paper's recipe.

    place: the folder that its links lead to. recipe: the config file that holds the paper's recipe; what the experiment
    adds to it is the paper's too.
    """

    name: str
    state: RunState
    place: Path
    facts: RunFacts | None
    deviations: tuple[str, ...]
    recipe: str


def render(sections: Sequence[Section], cards: Sequence[RunCard], warnings: Sequence[str], made: str, out: Path) -> str:
    """The page as text. made: when and from what it was made. out: where it will stand, for relative links."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def link(path: Path) -> str:
        return quote(os.path.relpath(path.absolute(), out.absolute().parent))

    environment.filters |= {"number": number, "signed": signed, "link": link}
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        cards=cards,
        warnings=warnings,
        made=made,
        css=Markup(css()),
        paper_column=PAPER_COLUMN,
        figures={section.anchor: _elements(section) for section in sections if section.figure},
        plot=lambda line, section: _interval_plot(line, _range(section)),
    )


def number(value: float | None, digits: int = 2) -> str:
    """Two decimals, as the paper; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001 - a dash for people


def signed(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:+.2f}".replace("-", "−")  # noqa: RUF001 - a minus as wide as the plus


def _elements(section: Section) -> list[Markup]:
    """Each panel as an <svg> of its own, so that they stand below each other on a phone."""
    assert section.figure is not None
    return [
        Markup(svg([panel], f"{section.heading}: {panel.title}", f"{section.anchor.replace('.', '-')}-{number}"))
        for number, panel in enumerate(section.figure.panels)
    ]


def _range(section: Section) -> tuple[float, float] | None:
    """The errors that the section's small plots reach over; None where there is nothing to plot."""
    values = []
    for line in (line for row in section.rows for line in row.lines if line.ours is not None):
        values += [line.ours, line.paper, *(line.interval or ())]
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _interval_plot(line: Line, reach: tuple[float, float] | None) -> Markup:
    """A small plot: our error (dot) in its interval (bar) and the paper's (diamond), on the table's common scale."""
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
        x = place(line.paper)
        parts.append(f'<path class="paper" d="M{x:.1f} 3l5 5-5 5-5-5z"/>')
    return Markup(f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH:g} 16" aria-hidden="true">{"".join(parts)}</svg>')
