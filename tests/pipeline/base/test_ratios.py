from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.base.ratios import read_ratio


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), ("0.5", Fraction(1, 2)), ("1/2", Fraction(1, 2)), ("1e3", 1000), (" 0.1 ", Fraction(1, 10))],
)
def test_numbers_are_read_exactly(text: str, value: Fraction | int) -> None:
    assert read_ratio(text) == value


# Written out, 1e999999999 has a thousand million digits: it must be refused before anything makes it a whole number.
@pytest.mark.parametrize(
    "text",
    ["", "many", "0", "-1", "0.0", "0/0", "1/0", "1/-2", "-1/-2", "1/2/3", "1.5/2", "nan", "inf", "1e400", "1e-400",
     "1e999999999", "1e-999999999", "9" * 400, "9" * 5000],
)  # fmt: skip
def test_what_is_no_number_above_0_that_a_float_holds_is_none(text: str) -> None:
    assert read_ratio(text) is None
