"""What a command prints at its end on standard output: a table for people, a line of JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_UNLIMITED = Console(width=10_000).options


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people on standard output; the first column is aligned left, the others right."""
    console, cells = Console(), [[str(cell) for cell in row] for row in rows]

    def table(titles: Sequence[str]) -> Table:
        headers = [
            Column(text, justify="right" if index else "left", no_wrap=True) for index, text in enumerate(titles)
        ]
        result = Table(*headers, box=box.SIMPLE_HEAD)
        for row in cells:
            result.add_row(*row)
        return result

    printed = table(columns)
    if console.is_terminal and console.measure(printed, options=_UNLIMITED).maximum > console.width:
        printed = table([column.replace(" ", "\n") for column in columns])
    # A pipe has no width, and a row that is too wide for a terminal is better wrapped than cut.
    width = max(console.width, console.measure(printed, options=_UNLIMITED).maximum)
    console.print(Text(title, style="bold"), soft_wrap=True)  # a title of a Table breaks where the table ends
    Console(width=width, force_terminal=console.is_terminal).print(printed)


def print_json(figures: dict[str, Any]) -> None:
    """Print one JSON object as the last line of standard output (`--json`)."""
    print(json.dumps(figures, sort_keys=True), flush=True)
