"""Checkpoints: atomic, verified, written in the background, retained by rule (contract 5).

A checkpoint is `checkpoints/ITERATION-DIGEST.pt`: DIGEST is the start of the file's SHA-256. So one rename publishes the
contents together with their checksum, and neither is ever there without the other.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.base.command import check_at_least, describe_os_error
from pipeline.base.files import TEMPORARY_SUFFIX, file_sha256, replacing, sync_folder
from pipeline.base.layout import checkpoint_name, checkpoint_parts, checkpoints_in
from pipeline.training.snapshot import Snapshots

# A run that failed waits this long for its last checkpoint: the storage, or the GPU that it is copied from, may hang.
CLOSE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Args:
        every: iterations between checkpoints; one is also written at the end, on a request to stop (preemption) and, with
            keep_best, at every new lowest val error.
        keep_last: how many of the newest are kept.
        keep_every: checkpoints at multiples of this many iterations are kept too. Left out: none of them.
        keep_best: whether the checkpoint with the lowest val error is kept too.
    """

    every: int = field(default=5000, metadata={"unit": "iterations", "period": True, "rounded": True})
    keep_last: int = 2
    keep_every: int | None = field(default=None, metadata={"unit": "iterations", "period": True, "rounded": True})
    keep_best: bool = True

    def __post_init__(self) -> None:
        check_at_least(1, self, "every", "keep_last", "keep_every", prefix="checkpoint.")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose digest is right.

    iteration: updates done. sha256: of the file. state: as it was given to `Checkpoints.save`.
    """

    path: Path
    iteration: int
    sha256: str
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. One process (rank 0) writes, any process may read.

    `save` copies the state to host memory and returns; a background thread writes the file. A failed write (disk full) is
    reported and leaves the earlier checkpoints intact; the next save tries again.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, check: Callable[[], None] = lambda: None) -> None:
        """check: called before a file is written or removed; what it raises, `save` and `wait` raise."""
        self.folder, self.config, self.check = folder, config, check
        self._snapshots = Snapshots()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: tuple[int, dict[str, Any], int | None] | None = None
        self._saved: Future[bool] | None = None

    def save(self, iteration: int, state: Mapping[str, Any], *, best_iteration: int | None = None) -> None:
        """Start writing `state` (tensors, numbers, strings, lists, dicts) as the checkpoint of `iteration`.

        Waits for the previous write, so at most one is in flight. best_iteration: of the checkpoint that `keep_best` keeps.
        """
        self.wait()
        self._last = (iteration, self._snapshots.take(state), best_iteration)
        self._saved = self._thread.submit(self._write, *self._last)

    def wait(self) -> bool:
        """Wait for the write in flight; False where the last write failed (which was reported)."""
        return self._saved is None or self._saved.result()

    def settle(self, pauses: Sequence[float] = (1.0, 4.0, 10.0)) -> bool:
        """`wait`, then repeat a failed write after each of these pauses (seconds); False where the last try failed too.

        A job that is asked to stop has about half a minute.
        """
        for pause in pauses:
            if self.wait():
                return True
            time.sleep(pause)
            assert self._last is not None
            self._saved = self._thread.submit(self._write, *self._last)
        return self.wait()

    def close(self) -> None:
        """Let the write in flight end, for at most CLOSE_SECONDS; whether it succeeds is not asked any more."""
        if self._saved is not None:
            wait([self._saved], CLOSE_SECONDS)
        self._thread.shutdown(wait=False)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose digest is right; a warning names each damaged one that is newer."""
        for _, path in reversed(checkpoints_in(self.folder)):
            if (found := read_verified(path)) is not None:
                return found
            print(f"warning: {path} is damaged (its digest differs): using the checkpoint before it", file=sys.stderr)
        return None

    def _write(self, iteration: int, state: dict[str, Any], best_iteration: int | None) -> bool:
        try:
            self._snapshots.wait()
            self.check()
            publish(self.folder, iteration, state)
            self._prune(best_iteration)
        except OSError as error:
            reason = describe_os_error(error) or str(error)
            print(f"warning: checkpoint {iteration} was not saved ({reason}); it is tried again", file=sys.stderr)
            return False
        return True

    def _prune(self, best_iteration: int | None) -> None:
        """Remove the checkpoints that the config does not keep, and the leftovers of writes that were killed."""
        for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        every = self.config.keep_every
        for iteration, path in checkpoints_in(self.folder)[: -max(1, self.config.keep_last)]:
            kept = (every and iteration % every == 0) or (self.config.keep_best and iteration == best_iteration)
            if not kept:
                path.unlink(missing_ok=True)


def publish(folder: Path, iteration: int, state: dict[str, Any]) -> Path:
    """Write one checkpoint, whole or not at all, also if the power fails. Returns its path."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    # Into memory first: torch.save into a file hides a full disk's OSError behind another error.
    contents = io.BytesIO()
    torch.save(state, contents)
    final = folder / checkpoint_name(iteration, hashlib.sha256(contents.getbuffer()).hexdigest())
    with replacing(final) as file:
        file.write(contents.getbuffer())
    sync_folder(folder)
    return final


def is_sound(path: Path) -> bool:
    """Whether a checkpoint file has the bytes that were written; False for a missing file and for another kind of name."""
    try:
        return _verified(path) is not None
    except FileNotFoundError:
        return False


def read_verified(path: Path) -> Checkpoint | None:
    """The checkpoint in a file; None where the file is damaged or missing, or has another kind of name."""
    try:
        if (verified := _verified(path)) is None:
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    iteration, sha256 = verified
    return Checkpoint(path=path, iteration=iteration, sha256=sha256, state=state)


def _verified(path: Path) -> tuple[int, str] | None:
    """(iteration, SHA-256) of a checkpoint file; None where its name has another digest, or none."""
    if (parts := checkpoint_parts(path)) is None:
        return None
    iteration, start = parts
    sha256 = file_sha256(path)
    return (iteration, sha256) if sha256.startswith(start) else None
