"""Whom a rank waits for, in words: told after WAITED_SECONDS, and again at growing intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.process.notes import Note

WAITED_SECONDS = 10.0
_NAMED = 4  # ranks in one sentence; the rest are counted


class Reminder:
    """When to tell of one waiting: after WAITED_SECONDS, twice that, four times that ..."""

    def __init__(self) -> None:
        self._next = WAITED_SECONDS

    def due(self, waited: float) -> bool:
        """Whether something is to be told after this many seconds of waiting, that was not told yet."""
        if waited < self._next:
            return False
        while self._next <= waited:
            self._next *= 2
        return True


def waits_for(own: Note, before: Mapping[int, Note | None], now: Mapping[int, Note | None]) -> str | None:
    """For whom the rank of the note `own` waits, in a sentence; None where it waits for nobody that is known to be behind.

    before, now: notes of the other ranks, read some seconds apart. A rank is behind whose position is less, whose beat did
    not advance (it is stopped, or gone), or that went on at the same position while this rank stood still. Where this rank
    is behind itself, the sentence says that the others wait for it.
    """
    known = {rank: note for rank, note in now.items() if note is not None}
    silent = [rank for rank, note in known.items() if (old := before.get(rank)) and old.beat == note.beat]
    behind = [rank for rank, note in known.items() if note.position < own.position]
    going_on = [
        rank for rank, note in known.items() if note.position == own.position and note.standing < own.standing / 2
    ]
    awaited = sorted({*silent, *behind, *going_on, *(rank for rank, note in now.items() if note is None)})
    seconds = f"for {own.standing:.0f} s"
    if not awaited:
        ahead = [rank for rank, note in known.items() if note.position > own.position]
        return f"{listed(ahead)} waiting for rank {own.rank} {seconds}: {own}" if ahead else None

    def describe(rank: int) -> str:
        note = known.get(rank)
        if note is None:
            return "has left no note yet"
        return f"does not respond, its last note: {note}" if rank in silent else str(note)

    if len(awaited) == 1:
        (rank,) = awaited
        return f"waiting for {_placed(rank, known)} {seconds}: {describe(rank)}"
    told = "; ".join(f"rank {rank}: {describe(rank)}" for rank in awaited[:_NAMED])
    more = f"; and {len(awaited) - _NAMED} more" if len(awaited) > _NAMED else ""
    return f"waiting for {listed(awaited)} {seconds}: {told}{more}"


def listed(ranks: Sequence[int]) -> str:
    """rank 3; ranks 3, 5, 6, 7 and 9 more."""
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks[:_NAMED]))}{more}"


def _placed(rank: int, known: Mapping[int, Note]) -> str:
    return f"rank {rank} ({known[rank].host})" if rank in known else f"rank {rank}"
