"""Progress of long work, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Self

from rich.console import RenderableType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from pipeline.base.console import console
from pipeline.base.output import Escaping, shown

LOG_INTERVAL_SECONDS = 15.0


class _Bar(RichProgress):
    """A progress bar with a line of figures below it: beside it they would not fit into 80 columns."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(shown(self.figures), no_wrap=True, overflow="ellipsis")


class Progress:
    """Progress of long work: a bar on a terminal; in a log file a line every 15 seconds and one at the end.

    Use as a context manager; `advance(n, loss="2.31")` counts n units and shows the figures beside the bar.
    """

    def __init__(self, total: int, description: str, unit: str, *, start: int = 0, enabled: bool = True) -> None:
        self.total, self.description, self.unit, self.done, self.start = total, description, unit, start, start
        self.enabled = enabled
        self.figures: dict[str, str] = {}
        self.started = self.last_line = time.monotonic()
        self.bar: _Bar | None = None
        terminal = console(sys.stderr)
        if enabled and terminal.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            rate = TextColumn("{task.fields[rate]}", markup=False)
            # On the terminal, what is printed goes above the bar; a file or a pipe gets it as ever.
            above = console(sys.stdout).is_terminal
            self.bar = _Bar(*columns, rate, TimeRemainingColumn(), console=terminal, redirect_stdout=above)
            self.task = self.bar.add_task(shown(description), total=total, completed=start, rate="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
            # What is printed meanwhile goes through rich, which lets some characters through that steer a terminal.
            for name in ("stdout", "stderr"):
                if isinstance(proxy := getattr(sys, name), FileProxy):
                    setattr(sys, name, Escaping(proxy))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.enabled and kind is None:
            self._line()

    def advance(self, n: int = 1, /, **figures: str) -> None:
        self.done += n
        self.figures.update(figures)
        if self.bar:
            self.bar.figures = "  ".join(self._figures())
            self.bar.update(self.task, completed=self.done, rate=shown(self._rate()))
        elif self.enabled and time.monotonic() - self.last_line >= LOG_INTERVAL_SECONDS:
            self._line()

    def _figures(self) -> list[str]:
        return [f"{key} {value}" for key, value in self.figures.items()]

    def _per_second(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self.started, 1e-9)

    def _rate(self) -> str:
        return f"{self._per_second():,.1f} {self.unit}/s"

    def _line(self) -> None:
        self.last_line = time.monotonic()
        rate = self._per_second()
        left = [f"{(self.total - self.done) / rate:,.0f} s left"] if rate > 0 and self.done < self.total else []
        text = "  ".join([f"{self.done:,} of {self.total:,}", self._rate(), *self._figures(), *left])
        print(shown(f"{self.description}: {text}"), file=sys.stderr, flush=True)
