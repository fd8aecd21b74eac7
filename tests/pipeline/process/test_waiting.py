"""Ranks say for whom they wait: at the start, and from then on by the notes of the others. Real ranks where two are needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.process import waiting
from pipeline.process.notes import Note
from pipeline.process.waiting import Reminder, listed, waits_for
from tests.fleet import Fleet
from tests.helpers import wait_for
from tests.pipeline.small_runs import config_of


def come_late(rank: int, culprit: int, leave: Path) -> None:
    """The culprit comes when `leave` exists; all tell of a waiting after a moment."""
    waiting.WAITED_SECONDS = 0.2
    if rank == culprit:
        wait_for(leave.exists, "leave to come", 120)


@pytest.mark.parametrize(
    ("culprit", "said"),
    [
        (0, r"waiting for rank 0 for 0 s: nobody answers at 127.0.0.1:"),
        (1, r"waiting for rank 1 of 2 for 0 s: it has not come yet"),
    ],
)
def test_a_rank_that_does_not_come_is_named(digits: Path, tmp_path: Path, culprit: int, said: str) -> None:
    config = replace(config_of(digits, tmp_path, "late"), iterations=1, recompute_bn_images=0)
    fleet = Fleet(config, 2, tmp_path / "logs", partial(come_late, culprit=culprit, leave=tmp_path / "leave"))
    wait_for(lambda: said in fleet.said(1 - culprit), said)
    (tmp_path / "leave").touch()
    assert fleet.wait(120) == [0, 0], fleet.said(0)
    assert fleet.said(1 - culprit).count("waiting for") < 12  # at growing intervals: 0.2 s, 0.4 s, 0.8 s ...


def note(rank: int, position: int, standing: float = 12.0, beat: int = 2) -> Note:
    words = {"iteration": 7, "activity": "saving", "time": 0.0, "process": 1}
    return Note(rank=rank, beat=beat, position=position, standing=standing, host=f"node{rank}", **words)


def told(own: Note, *others: Note | None, stopped: int = -1) -> str | None:
    """What the rank of `own` says of the others, ranks 1 and up; all but the one `stopped` have beaten meanwhile."""
    now = dict(enumerate(others, 1))
    before = {rank: one and replace(one, beat=one.beat - (rank != stopped)) for rank, one in now.items()}
    return waits_for(own, before, now)


def test_who_is_awaited() -> None:
    """Ranks that are behind, stand still without a word, or go on at the same note."""
    own = note(0, 9)
    assert told(own, note(1, 8), note(2, 9)) == "waiting for rank 1 (node1) for 12 s: iteration 7, saving"
    assert told(own, note(1, 9), note(2, 9), stopped=2) == (
        "waiting for rank 2 (node2) for 12 s: does not respond, its last note: iteration 7, saving"
    )
    assert told(own, note(1, 9, standing=0.5), note(2, 9)) == "waiting for rank 1 (node1) for 12 s: iteration 7, saving"
    assert told(own, None, note(2, 9)) == "waiting for rank 1 for 12 s: has left no note yet"
    several = told(own, *(note(rank, 8) for rank in range(1, 7)))
    assert several is not None and several.startswith("waiting for ranks 1, 2, 3, 4 and 2 more for 12 s: rank 1: ")
    assert several.endswith("; and 2 more")


def test_nobody_is_awaited_where_all_stand_alike() -> None:
    assert told(note(0, 9), note(1, 9), note(2, 9)) is None


def test_a_rank_that_is_behind_says_that_the_others_wait_for_it() -> None:
    assert told(note(0, 8), note(1, 9), note(2, 8)) == "rank 1 waiting for rank 0 for 12 s: iteration 7, saving"


def test_reminders_come_at_growing_intervals() -> None:
    reminder = Reminder()
    assert [waited for waited in range(100) if reminder.due(waited)] == [10, 20, 40, 80]
    late = Reminder()
    assert late.due(55) and not late.due(79) and late.due(80)
    assert listed([3]) == "rank 3" and listed([1, 2]) == "ranks 1, 2"
