"""Tables and progress, on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

ROWS = """
from pipeline.base.progress import Progress
from pipeline.base.tables import print_table
with Progress(3, "resnet8", "it") as progress:
    for _ in range(3):
        progress.advance(loss="1.84")
columns = ("net", "val top-1 error %", "val top-5 error %", "run folder")
print_table("runs", columns, [("resnet152-seed0", "21.43", "5.71", "runs/x")])
"""


def on_a_terminal(code: str, columns: int) -> str:
    """What a person sees of a Python program on a terminal of that width, without the escape sequences."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the terminal closed with the program
            break
        if not data:
            break
        seen += data
    os.close(master)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.parametrize("columns", [30, 60, 120])
def test_nothing_of_a_table_is_cut_on_a_terminal(columns: int) -> None:
    text = on_a_terminal(ROWS, columns)
    for word in ("resnet152-seed0", "21.43", "5.71", "runs/x", "top-5", "folder"):
        assert word in text
    table = text[text.index("runs") :]
    assert "…" not in table


def test_progress_shows_figures_on_a_terminal_and_one_line_in_a_log() -> None:
    terminal = on_a_terminal(ROWS, 80)
    assert "3/3" in terminal and "loss 1.84" in terminal
    log = subprocess.run([sys.executable, "-c", ROWS], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"resnet8: 3 of 3  [\d,.]+ it/s  loss 1\.84\n", log.stderr)
    assert "resnet152-seed0" in log.stdout and "\x1b" not in log.stdout
