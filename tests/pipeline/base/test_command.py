"""The conventions of all commands: exit codes, sentences, progress and tables on a terminal and in a log."""

from __future__ import annotations

import errno
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from launch.on_slurm import ending
from pipeline.base import command
from pipeline.base.command import UserError, nearest
from pipeline.tracking import __main__ as tracking

ROWS = """
from pipeline.base.command import Progress, print_table
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


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (UserError("the thing is wrong: mend it"), 2, "error: the thing is wrong: mend it"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: /data/x: the disk is full"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise raised

    with pytest.raises(SystemExit) as ended:
        command.run(main)
    captured = capsys.readouterr()
    assert ended.value.code == code and sentence in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_programming_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 // 0)


def test_nearest_names() -> None:
    assert nearest("resnet5", ["resnet50", "plain18", "x"]) == "did you mean 'resnet50'?"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (tracking.main, "", "the following arguments are required: open|sync|export: see --help"),
        (tracking.main, "opne runs", "invalid choice: 'opne'"),
        (tracking.main, "sync", "the following arguments are required: RUN: see --help"),
        (tracking.main, "open runs --prot 5001", "--prot is not an option: did you mean '--port'"),
        (tracking.main, "sync runs/a --seconds long", "argument --seconds: invalid float value: 'long'"),
        (ending.run, "runs/a/slurm --code x --limit 3", "argument --code: invalid int value: 'x'"),
        (ending.run, "runs/a/slurm --code 1", "the following arguments are required: --limit"),
    ],
)
def test_mistakes_are_one_sentence(main: Callable[[list[str]], int], words: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        main(words.split())
    assert sentence in str(mistake.value) and "\n" not in str(mistake.value)
