"""What an attack is: a function that does harm, drawn from a seed, and counts what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass
class Outcome:
    """What came of an attack's tries so far.

    counts: how often each right outcome was seen ("refused", "substituted", ...). failures: a sentence for every wrong one,
    which says how to repeat it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def right(self, what: str, count: int = 1) -> None:
        self.counts[what] += count

    def wrong(self, sentence: str) -> None:
        self.failures.append(sentence)

    @property
    def tries(self) -> int:
        return self.counts.total() + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One row of the table in docs/reliability.md.

    run: called with the generator of all that is drawn, the number of tries, an empty folder, and the outcome to add to.
    short, full: the number of tries of `make attack SHORT=1`, which CI runs, and of `make attack`.
    """

    name: str
    what: str  # is done, as the table says it
    run: Callable[[Random, int, Path, Outcome], None]
    short: int
    full: int
