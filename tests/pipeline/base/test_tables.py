"""Tables on a terminal and in a log."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.terminal import seen_on_a_terminal

TABLE = """
from pipeline.base.tables import print_table
columns = ("net", "val top-1 error %", "val top-5 error %", "run folder")
print_table("runs", columns, [("resnet152-seed0", "21.43", "5.71", "runs/x")])
"""


@pytest.mark.parametrize("columns", [30, 60, 120])
def test_nothing_of_a_table_is_cut_on_a_terminal(columns: int) -> None:
    text = seen_on_a_terminal(TABLE, columns)
    for word in ("runs", "resnet152-seed0", "21.43", "5.71", "runs/x", "top-5", "folder"):
        assert word in text
    assert "…" not in text


def test_a_table_in_a_log_has_no_colours() -> None:
    log = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True, check=True)
    assert "resnet152-seed0" in log.stdout and "\x1b" not in log.stdout and log.stderr == ""
