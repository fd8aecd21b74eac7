"""The first line of a command, before the imports that take its seconds. Imports light modules alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from types import FrameType

from pipeline.base.output import prepare
from pipeline.base.stopping import COMMAND_VARIABLE, end_now, end_on_request, heeded, say, typed_command

# Their answer is all that is wanted.
QUIET = {"-h", "--help", "--help-all", "--print-config"}
# Of so many words that the command line begins with, each is named: a shell may make a thousand of one `*.jpg`.
NAMED = 5


def begin(what: str | Callable[[Sequence[str]], str], otherwise: str = "", *, saves: bool = False) -> None:
    """Called first of all in a program: says what starts, and lets Ctrl-C end the imports that follow without a traceback.

    From here on file names and text files are UTF-8 whatever the locale, and no print ends the work or shows a secret
    (pipeline/base/output.py).

    what: the line, to which the command line's first words are added, or a function that makes it of the command line's words;
    "" where the command says it itself. otherwise: what is added where the command line begins with an option. saves: the
    command saves when it is asked to stop; SIGTERM and its like then end the imports in the same way.
    """
    prepare()
    _become_utf8()
    os.environ.setdefault(COMMAND_VARIABLE, typed_command())
    if saves:
        end_on_request()
    elif signal.SIGINT in heeded():
        signal.signal(signal.SIGINT, _end_before_the_work)
    words = sys.argv[1:]
    if not QUIET & set(words) and (line := what(words) if callable(what) else with_targets(what, words, otherwise)):
        say(line)


def imports_are_over() -> None:
    """Ctrl-C is KeyboardInterrupt again, unless the command has its own way."""
    if signal.getsignal(signal.SIGINT) is _end_before_the_work:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def with_targets(what: str, words: Sequence[str], otherwise: str = "") -> str:
    """`what` and the words before the first option: "testing runs/resnet50-seed0"; if there are none, `what`, `otherwise`."""
    return f"{what} {listed(targets(words)) or otherwise}".rstrip() if what else ""


def targets(words: Sequence[str]) -> list[str]:
    """The words before the first option."""
    return list(takewhile(lambda word: not word.startswith("-"), words))


def listed(words: Sequence[str]) -> str:
    """The words in a row, the first five if they are more: "1.jpg 2.jpg 3.jpg 4.jpg 5.jpg and 7 more"."""
    more = len(words) - NAMED
    return " ".join([*words[:NAMED], *([f"and {more} more"] if more > 0 else [])])


def _become_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode where its locale would name files by another encoding.

    Such a process could not open a folder that a config names in UTF-8, and would give a dataset's classes other names. The
    terminal keeps its encoding. Python has no way to change the mode while it runs; processes started from here inherit it.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _end_before_the_work(number: int, frame: FrameType | None) -> None:
    end_now(number, "interrupted before the work began")
