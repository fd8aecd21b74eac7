"""What a command prints at its end on standard output: a table for people, a line of JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline.base.console import console, literal

_UNLIMITED = Console(width=10_000).options


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people on standard output; the first column is aligned left, the others right.

    Titles and cells are shown as they are, each in one line.
    """
    terminal, cells = console(sys.stdout), [[literal(cell) for cell in row] for row in rows]

    def table(titles: Sequence[Text]) -> Table:
        headers = [
            Column(text, justify="right" if index else "left", no_wrap=True) for index, text in enumerate(titles)
        ]
        result = Table(*headers, box=box.SIMPLE_HEAD)
        for row in cells:
            result.add_row(*row)
        return result

    printed = table([literal(column) for column in columns])
    if terminal.is_terminal and terminal.measure(printed, options=_UNLIMITED).maximum > terminal.width:
        printed = table([Text("\n").join(map(literal, column.split(" "))) for column in columns])
    # A pipe has no width, and a row that is too wide for a terminal is better wrapped than cut.
    width = max(terminal.width, terminal.measure(printed, options=_UNLIMITED).maximum)
    terminal.print(literal(title, "bold"), soft_wrap=True)  # a title of a Table breaks where the table ends
    console(sys.stdout, width=width, terminal=terminal.is_terminal).print(printed)


def print_json(figures: dict[str, Any]) -> None:
    """Print one JSON object as the last line of standard output (`--json`)."""
    print(json.dumps(figures, sort_keys=True), flush=True)
