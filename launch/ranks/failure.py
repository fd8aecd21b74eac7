"""Failures of ranks: noted by the ranks, read by launchers, reduced to the one that caused the others.

A rank that fails takes its neighbours along: their collectives end in "connection reset", or never on a GPU. Every rank notes
its failure while its connections are still open, so the failure that was noted first is the cause: after a failure `open_world`
leaves them open, and only the end of the process closes them (pipeline/base/leaving.py).
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from pipeline.base.command import BEGINS_ANEW, UserError, describe_user_error
from pipeline.base.exits import EXIT_FAILED, EXIT_FENCED, EXIT_HUNG, EXIT_INTERRUPTED, EXIT_USER_ERROR
from pipeline.base.files import write_text
from pipeline.base.layout import failure_note, failure_notes
from pipeline.base.lease import FencedError
from pipeline.process.watchdog import Hang

NO_RANK = -1


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why `rank` ended with `code`. `time`: Unix seconds. `detail`: a traceback, empty where the sentence says all.

    `rank` is NO_RANK where the job failed before its ranks started, or outside them.
    """

    rank: int
    time: float
    code: int
    sentence: str
    detail: str = ""
    log: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def who(self) -> str:
        return "the job" if self.rank == NO_RANK else f"rank {self.rank}"

    @property
    def killed(self) -> bool:
        """Whether a signal from outside or a fault in machine code ended the rank: another rank's end never causes that.

        SIGABRT (134) does not count: NCCL's watchdog aborts a rank when another one vanishes.
        """
        return self.code > 128 and self.code not in (EXIT_INTERRUPTED, 134)


def attempt(rank: int, main: Callable[[], int]) -> tuple[int, Failure | None]:
    """Call `main`; its exit code, and the failure where `main` raised. Exit codes are those of pipeline.base.command.run."""

    def failure(code: int, sentence: str, detail: str = "") -> tuple[int, Failure]:
        return code, Failure(rank=rank, time=time.time(), code=code, sentence=sentence, detail=detail)

    try:
        return main(), None
    except FencedError as error:
        return failure(EXIT_FENCED, str(error))
    except KeyboardInterrupt:
        return failure(EXIT_INTERRUPTED, BEGINS_ANEW)
    except Exception as error:
        if sentence := describe_user_error(error):
            return failure(EXIT_USER_ERROR, sentence)
        return failure(EXIT_FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())


def failure_of_hang(hang: Hang, log: str = "") -> Failure:
    """A hang that the watchdog of any rank found, as the failure of the rank that holds the others up."""
    return Failure(rank=hang.ranks[0], time=time.time(), code=EXIT_HUNG, sentence=hang.sentence, log=log)


def cause(failures: Iterable[Failure]) -> Failure:
    """The failure that caused the others: that of a rank that was killed, else the one noted first."""
    return min(failures, key=lambda failure: (not failure.killed, failure.time))


def note(failure: Failure, logs: Path, attempt_name: str, log: str) -> None:
    """Write the failure into the run's logs/, where whoever waits for this attempt looks for the cause."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        write_text(failure_note(logs, attempt_name, failure.rank), replace(failure, log=log).to_json() + "\n")
    except OSError as error:
        print(f"warning: the failure could not be noted in {logs}: {error}", file=sys.stderr)


def read_notes(logs: Path, attempt_name: str) -> list[Failure]:
    """The failures that the ranks of one attempt noted."""
    return [Failure.from_json(path.read_text(encoding="utf-8")) for _, path in failure_notes(logs, attempt_name)]


def read_all_notes(logs: Path) -> dict[str, list[Failure]]:
    """The failures of every attempt that had any, by the attempt's name."""
    return {attempt_name: read_notes(logs, attempt_name) for attempt_name in {name for name, _ in failure_notes(logs)}}


def print_cause(failures: Iterable[Failure]) -> int:
    """Print the cause of these failures and return its exit code. Raises UserError where the cause is the user's mistake."""
    first = cause(failures)
    if first.code == EXIT_USER_ERROR and not first.detail:
        raise UserError(first.sentence)
    place = f" (its log: {first.log})" if first.log else ""
    print(first.detail.rstrip(), file=sys.stderr)
    print(f"error: {first.who} failed first: {first.sentence}{place}", file=sys.stderr)
    return first.code
