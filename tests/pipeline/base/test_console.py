"""Names from outside in tables and progress: they are shown as they are, and do not steer the terminal."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.imports import Source
from tests.terminal import Terminal

NAMES = [
    "[old] x",
    "[/]",
    "[bold]b",
    "[cat] tabby",
    ":dog:",
    "[link=http://x]y",
    "{task}",
    "%s",
    "$a_b$",
    "猫" * 20,
    "كلب",
]
SHOWN = r"steer\x1b[2J\x1bc\x9b2J\r\n\u202e\udcff"
STEERING = "steer\x1b[2J\x1bc\x9b2J\r\n\u202e\udcff"

PROGRAM = """
import sys, time
from pipeline.base.output import prepare
prepare()
from pipeline.base.progress import Progress
from pipeline.base.tables import print_table
for name in eval(sys.argv[1]):
    print_table(name, (name, name), [(name, name)])
    with Progress(2, name, name) as progress:
        progress.advance(1, **{name: name})
        if progress.bar:
            progress.bar.refresh()
        print("printed", name.partition("\\r")[0], file=sys.stderr)
"""


def _count(text: str, name: str) -> int:
    return text.count(name)


def test_names_are_shown_as_they_are_in_a_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ascii([*NAMES, STEERING])],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, capture_output=True, check=True,
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    for name in [*NAMES, SHOWN]:
        assert _count(out, name) == 5, (name, out)  # the title, two columns, two cells
        assert f"{name}: 1 of 2" in err and f"{name}/s  {name} {name}" in err, (name, err)
    assert not set(out + err) & {"\x1b", "\x9b", "\r", "\u202e"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_shown_as_they_are_on_a_terminal(encoding: str) -> None:
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm", "PYTHONIOENCODING": encoding}
    with Terminal([sys.executable, "-c", PROGRAM, ascii([*NAMES, STEERING])], Path.cwd(), environment) as terminal:
        assert terminal.finish() == 0, terminal.text
        raw = terminal._raw.decode()
    for name in [*NAMES, SHOWN]:
        expected = name.encode(encoding, "backslashreplace").decode()
        assert _count(terminal.text, expected) >= 7, (name, terminal.text)
        assert f"printed {expected.partition(chr(92) + 'r')[0]}" in terminal.text
    assert "\x1bc" not in raw and "\x1b[2J" not in raw and "\x9b" not in raw and "\u202e" not in raw


def test_every_console_is_made_in_one_place() -> None:
    """A `Console(...)` of its own reads markup and emoji codes into names."""
    made = []
    for name, file in Source(ROOT, ("pipeline", "launch", "data_prep", "paper")).files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                made.append(f"{name}:{ast.unparse(node)}")
    assert made == ["pipeline.base.console:" + CONSOLE, "pipeline.base.tables:Console(width=10000)"]


CONSOLE = (
    "Console(file=unescaped(stream), width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False)"
)
