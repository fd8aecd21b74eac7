"""Progress on a terminal and in a log."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.terminal import seen_on_a_terminal

WORK = """
from pipeline.base.progress import Progress
with Progress(3, "resnet8", "it") as progress:
    for _ in range(3):
        progress.advance(loss="1.84")
"""


def test_progress_shows_figures_on_a_terminal_and_one_line_in_a_log() -> None:
    terminal = seen_on_a_terminal(WORK, 80)
    assert "3/3" in terminal and "loss 1.84" in terminal
    log = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"resnet8: 3 of 3  [\d,.]+ it/s  loss 1\.84\n", log.stderr) and log.stdout == ""
