"""What a stage knows, and where its measurements go: lines of JSON, one at every measurement."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DRY_STRETCH = 8.0  # of the limits: a dry run has a CPU, and perhaps a busy one
LEAST = 5.0  # seconds left below which no process is started for a part: its imports alone take as long
NO_GPU = "no GPU"
NO_TIME = "no time left"
NOTED = 3  # exit code of a process whose part was not measured, which it has noted


class LeftOut(Exception):  # noqa: N818 - no error
    """Raised by a part that cannot be measured here: its sentence says why. That is no failure."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The check as one stage sees it; every process of the stage has one.

    results: the file of results, to which lines are only ever added. work: a folder for what stages make and may share.
    dry: tiny sizes, to see whether the check itself holds. ends: when the stage is stopped, by `time.monotonic`.
    """

    stage: str
    results: Path
    work: Path
    dry: bool
    ends: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Check:
        values = json.loads(text)
        return cls(**{**values, "results": Path(values["results"]), "work": Path(values["work"])})

    @property
    def gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def note(self, what: str, **values: Any) -> None:
        """Add a line to the results. `failed` and `left_out` among the values are sentences about what was not measured."""
        dry = {"dry": True} if self.dry else {}
        line = json.dumps({"stage": self.stage, "what": what, **dry, **values}, default=str)
        # One write of less than a page: lines of several processes do not mix.
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def part(self, what: str, work: Callable[[], T], *, gpu: bool = False, seconds: float = 0.0) -> T | None:
        """Return `work()`. Where that fails, the failure is a line of the results, and the return value is None.

        gpu: leave it out where there is no GPU. seconds: leave it out where the stage has less time left.
        """
        started = time.monotonic()
        try:
            if gpu and not self.gpu:
                raise LeftOut(NO_GPU)
            if self.left < seconds:
                raise LeftOut(NO_TIME)
            return work()
        except LeftOut as reason:
            self.note(what, left_out=str(reason))
        except Exception as error:  # whatever it is, the next part goes on
            traceback.print_exc()
            message = " ".join(str(error).split())[:400]
            self.note(what, failed=f"{type(error).__name__}: {message}", seconds=round(time.monotonic() - started, 1))
        return None

    @property
    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.ends - time.monotonic()

    def apart(self, parts: Mapping[str, Callable[[Check], object]], seconds: float, *, gpu: bool = False) -> set[str]:
        """Run each of these parts in a process of its own, all at once: one that crashes or hangs is a line of the results.

        parts: by name, functions that a new process can import. seconds: what each may take, outside dry runs. gpu: as in
        `part`. Where the stage has less than LEAST left, all are left out. Returns the names of those that came to their end.
        """
        left_out = NO_GPU if gpu and not self.gpu else NO_TIME if self.left < LEAST else None
        if left_out:
            for what in parts:
                self.note(what, left_out=left_out)
            return set()
        seconds *= DRY_STRETCH if self.dry else 1
        ends = min(self.ends, time.monotonic() + seconds)
        context = multiprocessing.get_context("spawn")
        children = {}
        for what, work in parts.items():
            children[what] = context.Process(target=_work_apart, args=(replace(self, ends=ends), what, work))
            children[what].start()
        for what, child in children.items():
            child.join(max(0.0, ends - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()
                self.note(what, failed=f"stopped after {seconds:.0f} s")
            elif child.exitcode not in (0, NOTED):
                self.note(what, failed=f"its process ended with {ending(child.exitcode or 0)}")
        return {what for what, child in children.items() if child.exitcode == 0}


def _work_apart(check: Check, what: str, work: Callable[[Check], object]) -> None:
    faulthandler.enable()

    def whole() -> bool:
        work(check)
        return True

    sys.exit(0 if check.part(what, whole) else NOTED)


def ending(code: int) -> str:
    """Return the exit code of a process in words; a negative one is that of a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
