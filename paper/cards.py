"""The cards at the page's end: one for each run that the page shows, to which its numbers lead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper.others import OtherRun
from paper.rows import RowResult
from paper.runs import RunFacts, deviations, read_facts
from paper.spec import resolve
from pipeline.base.layout import ENSEMBLE
from pipeline.run.config import Config


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """One run. place: the folder that its links lead to.

    facts: how it was trained; None for a conflicting or damaged run and for an ensemble. recipe: the config file with the
    paper's recipe, to which the experiment's overrides belong too, and how the run's config deviates from it; None for a run
    of no experiment, which has its `training` in words. members: of an ensemble.
    """

    folder: Path
    status: str
    place: Path
    facts: RunFacts | None = None
    recipe: str | None = None
    deviations: tuple[str, ...] = ()
    training: str | None = None
    members: tuple[str, ...] = ()

    @property
    def recorded(self) -> bool:
        """Whether a record can be kept of it."""
        return self.facts is not None or (bool(self.members) and (self.folder / ENSEMBLE).is_file())


def cards_of(rows: Iterable[RowResult], others: Sequence[OtherRun]) -> list[RunCard]:
    """One card for each run folder, in the order in which rows and others name them."""
    elsewhere = {run.folder for run in others}
    cards: dict[Path, RunCard] = {}
    for run in (run for row in rows for run in row.runs):
        state = run.state
        if state.kind == "not run" or state.folder in cards.keys() | elsewhere:
            continue
        sound = state.kind != "conflicting"
        cards[state.folder] = RunCard(
            folder=state.folder,
            status=state.text,
            place=state.folder,
            facts=read_facts(state.folder, state.config.batch) if sound else None,
            recipe=run.spec.config.name,
            deviations=tuple(deviations(state.config, resolve(run.spec))) if sound else (),
        )
    return [*cards.values(), *map(_of_other, others)]


def _of_other(run: OtherRun) -> RunCard:
    facts = read_facts(run.folder, run.state.config.batch) if run.state else None
    training = _training(run.state.config) if run.state else None
    return RunCard(
        folder=run.folder, status=run.status, place=run.folder, facts=facts, training=training, members=run.members
    )


def _training(config: Config) -> str:
    """What a run of no recipe of the paper's was trained with, in some words; its config.yaml has the rest."""
    lr, kind = config.optimizer.lr, config.schedule.kind
    return (
        f"{config.iterations:,} iterations of {config.batch:,} images, learning rate {lr:g} ({kind}), "
        f"{config.precision}, seed {config.seed}"
    )


def anchors(folders: Iterable[Path]) -> dict[Path, str]:
    """A fragment for each run folder that is unique on the page: run-NAME where the name is plain and the first of its kind."""
    found: dict[Path, str] = {}
    for folder in folders:
        plain = anchor = "run-" + re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name)
        number = 1
        while anchor in found.values():
            number += 1
            anchor = f"{plain}.{number}"
        found.setdefault(folder, anchor)
    return found
