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
from pipeline.base.redaction import without_secrets

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
    """Print one JSON object as the last line of standard output (`--json`), without secrets."""
    print(json.dumps(_hidden(figures), sort_keys=True), flush=True)


def _hidden(value: Any) -> Any:
    """`value` without secrets in its texts: hidden in the printed line, they might take its quotes with them."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _hidden(one) for key, one in value.items()}
    return [_hidden(one) for one in value] if isinstance(value, list | tuple) else value
