"""The table that ends a training: it fits a terminal, and says nothing that is true of every net."""

from __future__ import annotations

import pytest

from pipeline.run.config import Config
from pipeline.train import ERRORS, closing_table
from tests.terminal import seen_on_a_terminal

CONFIG = Config(arch="resnet110", iterations=600_000)


@pytest.mark.parametrize("classes", [5, 1000])
def test_it_fits_80_columns(classes: int) -> None:
    columns, row = closing_table(CONFIG, 600_000, dict.fromkeys(ERRORS, 100.0), classes)
    script = f"from pipeline.base.tables import print_table; print_table('run', {columns}, [{row}])"
    lines = seen_on_a_terminal(script, 80).splitlines()
    assert any(all(cell in line for cell in row) for line in lines), "the row is in one line"


def test_five_classes_have_no_top_5_error() -> None:
    errors = {"train_error": 1.0, "val_top1": 2.5, "val_top5": 0.0}
    assert closing_table(CONFIG, 10, errors, 5) == (
        ["net", "iterations", "train error %", "val top-1 error %"],
        ["resnet110", "10 of 600,000", "1.00", "2.50"],
    )
    assert "val top-5 error %" in closing_table(CONFIG, 10, errors, 6)[0]
