"""Stages that do what stages may do: measure, fail, crash, hang. The runner calls `run`, `Check.apart` the others."""

from __future__ import annotations

import os
import signal
import time

from bench.gpu.check import Check, LeftOut


def run(check: Check) -> None:
    """As the stage's name says."""
    check.note("first", value=1.0)
    {"works": works, "fails": fails, "crashes": crashes, "hangs": hangs}[check.stage](check)
    check.note("last", value=2.0)


def works(check: Check) -> None:
    check.part("needs a GPU", lambda: None, gpu=True)
    check.part("needs more time", lambda: None, seconds=1e6)
    check.part("is not here", left_out)


def fails(check: Check) -> None:
    assert check.part("broken", lambda: [][1]) is None
    assert check.part("sound", lambda: 5) == 5


def left_out() -> None:
    raise LeftOut("nothing is installed")


def raises(check: Check) -> None:
    raise ValueError("the part's own words")


def crashes(check: Check) -> None:
    print("before the crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(check: Check) -> None:
    time.sleep(600)


def notes(check: Check) -> None:
    check.note("apart", value=3.0)
