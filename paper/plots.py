"""The small plots in the page's tables, as inline SVG without any text."""

from __future__ import annotations

from markupsafe import Markup

from paper.others import OtherRun
from paper.rows import Line
from paper.section import Section
from pipeline.evaluation.figures import binned

PLOT_WIDTH = 120.0  # of the small plot of an interval, in the units of its viewBox
POINTS = 40  # of a sparkline


def reach(section: Section) -> tuple[float, float] | None:
    """The lowest and highest error of the section's small plots; None where there is nothing to plot."""
    lines = [line for row in section.rows for line in section.lines_of(row) if line.ours is not None]
    values = [
        value for line in lines for value in (line.ours, line.reference, *(line.interval or ())) if value is not None
    ]
    return (min(values), max(values)) if values else None


def interval_plot(line: Line, reach: tuple[float, float] | None) -> Markup:
    """A small plot: our error (dot) in its interval (bar), and the reference (diamond), on the scale of the whole table."""
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
    if line.reference is not None:
        parts.append(f'<path class="paper" d="M{place(line.reference):.1f} 3l5 5-5 5-5-5z"/>')
    return Markup(f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH:g} 16" aria-hidden="true">{"".join(parts)}</svg>')


def sparkline(run: OtherRun) -> Markup:
    """The run's val error (without one, its training error) over its iterations, from 0% up; nothing where it has no curve."""
    curve = next((one for kind in ("test", "train") for one in run.curves if one.kind == kind), None)
    if curve is None or len(curve.x) < 2:
        return Markup("")
    x, y = binned(curve.x, curve.y, POINTS)
    points = zip(PLOT_WIDTH * x / x.max(), 15 - 14 * y / max(y.max(), 1e-9), strict=True)
    path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
    return Markup(
        f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH:g} 16" aria-hidden="true"><path class="bar" d="{path}"/></svg>'
    )
