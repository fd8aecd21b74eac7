"""The one place where rich gets its consoles: names from outside are shown as they are, whatever rich could read into them."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.text import Text

from pipeline.base.output import shown, unescaped


def console(stream: TextIO, *, width: int | None = None, terminal: bool | None = None) -> Console:
    """A console on sys.stdout or sys.stderr. width: columns; terminal: whether it is one; None: as found."""
    return Console(
        file=unescaped(stream), width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False
    )


def literal(text: object, style: str = "") -> Text:
    """A text for rich that is shown as it is, in one line: `[old]` and `:dog:` stay, control characters are escaped."""
    return Text(shown(text), style=style)
