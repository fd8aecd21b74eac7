"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.helpers import ROOT
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


WITH_RESULTS = """
from pipeline.base.output import prepare
from pipeline.base.progress import Progress
prepare()
with Progress(2, "work", "units") as progress:
    for number in range(2):
        print("result", number)
        progress.advance()
"""


def test_redirected_results_do_not_go_to_the_bars_terminal() -> None:
    """A bar on the terminal, beside a standard output that is a file or a pipe."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", WITH_RESULTS],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=terminal,
            check=True,
        )
        shown = os.read(controller, 65536).decode()
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.stdout.decode() == "result 0\nresult 1\n"
    assert "work" in shown and "2/2" in shown and "result" not in shown
