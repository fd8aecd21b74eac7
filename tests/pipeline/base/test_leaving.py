"""How a process ends: with Python's clean-up, or without it once something open must not be closed. Real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.patience import limit

# The clean-up leaves a line, and never ends where it must be skipped.
PROGRAM = """
import atexit, sys, threading
from pipeline.base import command
from pipeline.base.leaving import leave, skip_cleanup
def clean_up():
    print("cleaned up")
    if skipped: threading.Event().wait()
skipped = {skipped}
atexit.register(clean_up)
print("said", end="")
if skipped: skip_cleanup()
def fail(error): raise error
{end}
"""


def ended(end: str, skipped: bool) -> tuple[int, str, str]:
    command = [sys.executable, "-c", PROGRAM.format(skipped=skipped, end=end)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit(60), check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("leave(0)", 0, ""),
        ("leave(75)", 75, ""),
        ("command.run(lambda: 7)", 7, ""),
        ("command.run(lambda: fail(command.UserError('mend it')))", 2, "error: mend it\n"),
        ("command.run(lambda: fail(KeyboardInterrupt()))", 130, "interrupted before the end: "),
        ("command.run(lambda: fail(ValueError('wrong')))", 1, "ValueError: wrong\n"),
    ],
)
def test_a_process_ends_with_its_code_and_words(end: str, code: int, error: str) -> None:
    cleaned = ended(end, skipped=False)
    assert cleaned[:2] == (code, "saidcleaned up\n") and error in cleaned[2]
    at_once = ended(end, skipped=True)
    assert at_once[:2] == (code, "said") and error in at_once[2]
