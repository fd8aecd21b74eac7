"""What run.json says of the weights that a run started from (`starts_from`); nothing of a run that started at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.base.command import UserError
from pipeline.base.typed import read_typed
from pipeline.run.folder import STARTS_FROM, read_facts


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """Weights that a run started from.

    init: as its user named them. file: where they were read. weights: which of a run's, or of the file's ("": its only ones).
    iteration: updates that a run had made; None of a file. sha256: of the weights' contents as they lay there, which score
    files and models call weights_sha256. taken, of: how many of the net's tensors come from there. left_out: the others, each
    with the reason. remark: a clause on what could not be compared; "": nothing.
    """

    init: str
    file: str
    weights: str
    iteration: int | None
    sha256: str
    taken: int
    of: int
    left_out: dict[str, str]
    remark: str = ""

    def __str__(self) -> str:
        """`runs/x (iteration 400, final weights, SHA-256 0123456789abcdef...): 36 of 38 tensors; at random: fc.weight ...`."""
        return self._described(self.init)

    @property
    def without_folders(self) -> str:
        """The same for readers of other machines: without the folders in which it lay."""
        return self._described(Path(self.init).name)

    def _described(self, name: str) -> str:
        when = "" if self.iteration is None else f"iteration {self.iteration:,}, "
        which = f"{self.weights} weights, " if self.weights else ""
        text = f"{name} ({when}{which}SHA-256 {self.sha256[:16]}...): {self.taken} of {self.of} tensors"
        parts = [text, f"at random: {self._left_out()}" if self.left_out else "", self.remark]
        return "; ".join(filter(None, parts))

    def _left_out(self) -> str:
        """The tensors that were left out, those of one reason together; of many the first and how many more."""
        parts = []
        for reason, group in groupby(self.left_out.items(), lambda item: item[1]):
            names = [name for name, _ in group]
            shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            parts.append(f"{shown} ({reason})")
        return "; ".join(parts)

    def as_fact(self) -> dict[str, Any]:
        """What run.json holds."""
        return asdict(self)


def starting_point_in(facts: Mapping[str, Any]) -> StartingPoint | None:
    """The weights that the run started from whose run.json is `facts`; None where it started at random."""
    found = facts.get(STARTS_FROM)
    return None if found is None else read_typed(StartingPoint, found, f"{STARTS_FROM} of run.json")


def starting_point_of(folder: Path) -> StartingPoint | None:
    """The weights that the run in `folder` started from; None where it started at random or does not say so soundly."""
    try:
        return starting_point_in(read_facts(folder))
    except UserError:
        return None
