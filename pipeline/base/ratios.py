"""Numbers above 0 that a command line gives exactly: 8, 0.5 or 1/2."""

from __future__ import annotations

import math
from fractions import Fraction


def read_ratio(text: str) -> Fraction | None:
    """`8`, `0.5`, `1e3` or `1/2`; None for what is no number above 0, or is one that no float holds (`1e400`, `inf`, `nan`)."""
    try:
        # First as floats, which are quick to read: of 1e999999999 a Fraction would write all digits down.
        if not all(0 < float(part) < math.inf for part in text.split("/")):
            return None
        return Fraction(text)
    except ValueError:
        return None
