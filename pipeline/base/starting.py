"""The first line of a command, before the imports that take its seconds. Imports light modules alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from types import FrameType

from pipeline.base.stopping import COMMAND_VARIABLE, end_now, end_on_request, heeded, say, typed_command

# Their answer is all that is wanted.
QUIET = {"-h", "--help", "--help-all", "--print-config"}


def begin(what: str | Callable[[Sequence[str]], str], *, saves: bool = False) -> None:
    """Called first of all in a program: says what starts, and lets Ctrl-C end the imports that follow without a traceback.

    what: the line, to which the command line's first words are added, or a function that makes it of the command line's words;
    "" where the command says it itself. saves: the command saves when it is asked to stop; SIGTERM and its like then end the
    imports in the same way.
    """
    os.environ.setdefault(COMMAND_VARIABLE, typed_command())
    if saves:
        end_on_request()
    elif signal.SIGINT in heeded():
        signal.signal(signal.SIGINT, _end_before_the_work)
    words = sys.argv[1:]
    if not QUIET & set(words) and (line := what(words) if callable(what) else with_targets(what, words)):
        say(line)


def imports_are_over() -> None:
    """Ctrl-C is KeyboardInterrupt again, unless the command has its own way."""
    if signal.getsignal(signal.SIGINT) is _end_before_the_work:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def with_targets(what: str, words: Sequence[str]) -> str:
    """`what` and the words before the first option: "testing runs/resnet50-seed0"."""
    return " ".join([what, *takewhile(lambda word: not word.startswith("-"), words)]) if what else ""


def _end_before_the_work(number: int, frame: FrameType | None) -> None:
    end_now(number, "interrupted before the work began")
