"""The report page: one HTML file that asks the network for nothing; tables, inline SVG figures, a card for each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from paper.cards import RunCard, anchors
from paper.others import Others
from paper.panels import PAPER_COLUMN, FigureData
from paper.plots import interval_plot, reach, sparkline
from paper.run_figure import curves_of
from paper.section import Section
from pipeline.evaluation.figures import css, svg

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows. origin: its date and source. warnings: sentences for its head."""

    sections: Sequence[Section]
    others: Others
    cards: Sequence[RunCard]
    warnings: Sequence[str]
    origin: str


def render(page: Page, out: Path) -> str:
    """The page as text. out: its path, for relative links. Names of runs, classes and datasets may be any text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )

    def link(path: Path) -> str:
        return quote(os.path.relpath(path.absolute(), out.absolute().parent))

    environment.filters |= {"number": number, "signed": signed, "link": link}
    found = anchors(card.folder for card in page.cards)
    curves = [curves_of(group) for group in page.others.groups]
    return environment.get_template(TEMPLATE).render(
        **vars(page),
        css=Markup(css()),
        paper_column=PAPER_COLUMN,
        anchor=found.get,
        cards_by_name={card.folder.name: card for card in reversed(page.cards)},
        figures={one.anchor: _elements(one.figure, one.heading, one.anchor) for one in page.sections if one.figure},
        other_curves=curves,
        other_figures=[
            _elements(one, f"Other runs {i}", f"others-{i}") if one else [] for i, one in enumerate(curves, 1)
        ],
        plot=lambda line, section: interval_plot(line, reach(section)),
        sparkline=sparkline,
    )


def number(value: float | None, digits: int = 2) -> str:
    """Two decimals, as in the paper; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001 - a dash for people


def signed(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:+.2f}".replace("-", "−")  # noqa: RUF001 - a minus as wide as the plus


def _elements(figure: FigureData, title: str, name: str) -> list[Markup]:
    """Each panel as an <svg> of its own: on a phone the panels go below one another."""
    plain = name.replace(".", "-")
    return [Markup(svg([one], f"{title}: {one.title}", f"{plain}-{i}")) for i, one in enumerate(figure.panels)]
