"""What the evaluation commands' command lines share."""

from __future__ import annotations

import argparse
import math

from pipeline.command import UserError
from pipeline.evaluation.definitions import PROTOCOLS, find


def three_numbers(text: str) -> tuple[float, float, float]:
    """`123.675,116.28,103.53`: one finite number per channel."""
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers R,G,B")
    return numbers


def protocol_names(texts: list[str]) -> list[str]:
    """The protocols named by repeated options and comma lists, in that order, once each. Raises UserError."""
    names = [name for text in texts for name in text.split(",") if name]
    for name in names:
        find(name)
    if not names:
        raise UserError(f"no protocol was named: give --protocol with {', '.join(PROTOCOLS)}")
    return list(dict.fromkeys(names))


def errors_cells(top1: float | None, top5: float | None) -> tuple[str, str]:
    """Top-1 and top-5 error as table cells; a dash where the split has no labels."""
    first, second = ("-" if error is None else f"{error:.2f}" for error in (top1, top5))
    return first, second


def rate_cell(images_per_second: float | None) -> str:
    return "-" if images_per_second is None else f"{images_per_second:,.1f}"
