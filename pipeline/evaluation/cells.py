"""How the closing tables of the evaluation commands show errors and rates."""

from __future__ import annotations


def errors_cells(top1: float | None, top5: float | None) -> tuple[str, str]:
    """Top-1 and top-5 error as table cells; a dash where the split has no labels."""
    first, second = ("-" if error is None else f"{error:.2f}" for error in (top1, top5))
    return first, second


def rate_cell(images_per_second: float | None) -> str:
    """A rate as a table cell; a dash where nobody measured it."""
    return "-" if images_per_second is None else f"{images_per_second:,.1f}"
