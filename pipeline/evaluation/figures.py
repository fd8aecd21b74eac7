"""Draws the paper's figures as SVG with matplotlib: colours follow the reader's light or dark setting, text stays text.

A figure is a row of `Panel`s. matplotlib draws in placeholder colours, which become CSS variables: the page that embeds
`svg` must define them (`COLOURS`); `standalone` defines them itself.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

WIDTH, HEIGHT = 5.0, 3.6  # inches of one panel; at 72 units an inch, 360 x 259, which a phone shows about 1:1
FONT_SIZE = 11.0
POINTS = 400  # per curve; longer curves are averaged over equal stretches, which a reader could not tell apart
LABEL_GAP = 0.062  # least distance between two labels at the curves' ends, as a share of the axis' height

# Okabe and Ito's colours, for all kinds of colour vision, darkened (light page) or lightened (dark page) to a contrast of
# at least 4.5 with the page's background, because labels are written in these colours.
COLOURS = {
    "page": ("#ffffff", "#14181d"),
    "ink": ("#1b1f24", "#e6e8eb"),
    "quiet": ("#59616b", "#a3acb8"),
    "grid": ("#dfe3e8", "#343b44"),
    "series-0": ("#0061a3", "#6cb8f5"),
    "series-1": ("#b34700", "#f29c55"),
    "series-2": ("#007a59", "#3ecfa0"),
    "series-3": ("#a63d80", "#e79ac8"),
    "series-4": ("#7a5c00", "#e3c04b"),
    "series-5": ("#5b4bb5", "#b3a7f5"),
}
_PLACEHOLDERS = {name: f"#0e0f{number:02x}" for number, name in enumerate(COLOURS, start=0x10)}
_SERIES = [name for name in COLOURS if name.startswith("series")]
_STYLES: dict[str, dict[str, object]] = {  # Figs. 1, 4 and 6: training error thin or dashed, test error bold
    "train": {"linewidth": 1.0, "dashes": (3, 1.5)},
    "test": {"linewidth": 2.0},
    "responses": {"linewidth": 1.2, "marker": "o", "markersize": 2.6},
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: x, y float [N]. The curves of a net share a colour; its bold curve is labelled."""

    net: str
    kind: Literal["train", "test", "responses"]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes. nets: in the order of their colours. marks: the paper's end point of a net, (net, y) at the right.

    x_limits, y_limits: of the axes; None fits the curves, from zero. iterations: x counts iterations, which the axis gives in
    1e4, as the paper does, where it reaches that far.
    """

    title: str
    x_label: str
    y_label: str
    nets: Sequence[str]
    curves: Sequence[Curve]
    marks: Sequence[tuple[str, float]] = field(default=())
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    iterations: bool = False


def binned(x: NDArray[np.float64], y: NDArray[np.float64], most: int = POINTS) -> tuple[NDArray, NDArray]:
    """Average (x, y) over stretches of equal length (the last may be shorter), so that at most `most` points are left."""
    if len(x) <= most:
        return x, y
    starts = np.arange(0, len(x), -(-len(x) // most))
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def response_panels(std: Mapping[str, Sequence[float]]) -> list[Panel]:
    """Return Fig. 7: the layers in their order, and sorted by falling magnitude. std: by net, in layer order."""
    panels = []
    falling = {net: sorted(values, reverse=True) for net, values in std.items()}
    for title, label, ordered in (
        ("in layer order", "layer index (original)", std),
        ("sorted", "layer index (sorted by magnitude)", falling),
    ):
        curves = [
            Curve(net=net, kind="responses", x=np.arange(1.0, len(values) + 1), y=np.array(values, dtype=np.float64))
            for net, values in ordered.items()
        ]
        panels.append(Panel(title=title, x_label=label, y_label="std", nets=list(std), curves=curves))
    return panels


def svg(panels: Sequence[Panel], title: str, name: str) -> str:
    """Return an <svg> element for a page that defines `COLOURS`. name: unique there. title: for readers who cannot see it.

    Any text may be a title or a net's name: nothing in it is read as markup or as a formula.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": FONT_SIZE}):
        figure = Figure(figsize=(WIDTH * len(panels), HEIGHT), layout="constrained")
        for number, panel in enumerate(panels):
            _draw(figure.add_subplot(1, len(panels), number + 1), panel)
        file = io.StringIO()
        # Without a date, equal figures are equal files.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _as_element(file.getvalue(), title, name)


def standalone(panels: Sequence[Panel], title: str, name: str) -> str:
    """Return an SVG file that defines its colours for light and dark."""
    style = f"<style>{css()} svg {{ background: var(--page) }} text {{ font-family: sans-serif !important }}</style>"
    return svg(panels, title, name).replace(">", f">{style}", 1) + "\n"


def css() -> str:
    """Return the colours as CSS variables, for light and for dark."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root {{ {light} }} @media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _draw(axes: Axes, panel: Panel) -> None:
    ink, quiet, grid = (_PLACEHOLDERS[name] for name in ("ink", "quiet", "grid"))
    colours = {net: _PLACEHOLDERS[_SERIES[i % len(_SERIES)]] for i, net in enumerate(panel.nets)}
    for curve in panel.curves:
        axes.plot(*binned(curve.x, curve.y), color=colours[curve.net], **_STYLES[curve.kind])  # type: ignore[arg-type]
    axes.set_title(panel.title, color=ink, fontsize=FONT_SIZE, loc="left", parse_math=False)
    axes.set_ylabel(panel.y_label, color=quiet)
    axes.set_xlim(*(panel.x_limits or (0, max((curve.x.max() for curve in panel.curves), default=1) * 1.02)))
    axes.set_ylim(*(panel.y_limits or (0, max((curve.y.max() for curve in panel.curves), default=1) * 1.05)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.iterations))
    unit = 10_000 if panel.iterations and axes.get_xlim()[1] >= 10_000 else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,g}"))
    axes.set_xlabel(f"{panel.x_label} (1e4)" if unit > 1 else panel.x_label, color=quiet)
    axes.grid(color=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=quiet, length=0, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(grid)
    right = axes.get_xlim()[1]
    for net, value in panel.marks:
        axes.plot([right], [value], "D", markersize=5, markerfacecolor="none", markeredgecolor=colours[net],
                  clip_on=False, zorder=5)  # fmt: skip
    _label(axes, panel, colours)


def _label(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    """Write each net's name at the end of its bold curve, moved up or down where two names would overlap."""
    low, high = axes.get_ylim()
    ends: dict[str, float] = {}
    for curve in sorted(panel.curves, key=lambda curve: curve.kind != "train"):  # bold curves last, so that they count
        ends[curve.net] = float(curve.y[-max(1, len(curve.y) // 40) :].mean())
    for net, value in panel.marks:  # if a curve ends outside the axes, its label stands at the paper's end point
        if not low <= ends.get(net, np.inf) <= high:
            ends[net] = value
    heights = sorted((float(np.clip((value - low) / (high - low), 0, 1)), net) for net, value in ends.items())
    places: list[float] = []
    for height, _ in heights:
        places.append(max(height, places[-1] + LABEL_GAP) if places else height)
    if places and places[-1] > 1:  # labels pushed out at the top move back down
        places[-1] = 1.0
        for i in reversed(range(len(places) - 1)):
            places[i] = min(places[i], places[i + 1] - LABEL_GAP)
    for place, (_, net) in zip(places, heights, strict=True):
        axes.annotate(net, (1.03, place), xycoords="axes fraction", color=colours[net], va="center", fontsize=FONT_SIZE,
                      parse_math=False)  # fmt: skip


def _as_element(text: str, title: str, name: str) -> str:
    """Turn matplotlib's file into an element without prologue and size, with unique ids, and colours as variables."""
    text = text[text.index("<svg ") :].rstrip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    start, rest = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', start)
    assert box is not None
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", rest)
    rest = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', rest)
    for colour, placeholder in _PLACEHOLDERS.items():
        rest = rest.replace(placeholder, f"var(--{colour})")
    title = html.escape(title)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" aria-label="{title}">'
    return f"{head}<title>{title}</title>{rest}"
