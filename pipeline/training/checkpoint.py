"""Checkpoints: atomic, verified, written in the background, retained by rule (contract 5).

A checkpoint is `checkpoints/ITERATION-DIGEST.pt`: DIGEST is the start of the file's SHA-256. So one rename publishes the
contents together with their checksum, and neither is ever there without the other.

A file of such a name is sound where its digest is right and torch reads a state of that iteration from it. Whoever reads
passes over what is not; the process that writes the run also gives it another name (`.damaged` behind it), once it goes on
from an earlier one. So it never counts as the newest again, and never as one of those that are kept.
"""

from __future__ import annotations

import errno
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.base.command import UserError, check_at_least, describe_os_error
from pipeline.base.files import TEMPORARY_SUFFIX, replacing, sync_folder
from pipeline.base.layout import checkpoint_name, checkpoint_parts, checkpoints_in, set_aside_name
from pipeline.base.regular import is_gone, open_regular
from pipeline.base.stopping import say
from pipeline.training.snapshot import Snapshots

# A run that failed waits this long for its last checkpoint: the storage, or the GPU that it is copied from, may hang.
CLOSE_SECONDS = 60.0
# What this process lacks, and no file is to blame for.
_LACKING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_NAMED = 3  # files that a refusal lists


class UnsoundError(Exception):
    """A checkpoint file that is not to be used: why, as a clause without a subject, such as "its digest differs"."""


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
    """A sound checkpoint.

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

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        check: Callable[[], None] = lambda: None,
        misfit: Callable[[dict[str, Any]], str | None] = lambda state: None,
    ) -> None:
        """check: called before a file is written, renamed or removed; what it raises, `save` and `wait` raise.

        misfit: why a sound state is none of this run, as a clause like that of UnsoundError; None where it is.
        """
        self.folder, self.config, self.check, self.misfit = folder, config, check, misfit
        self._sound: dict[str, _Stamp] = {}  # by name: what this process wrote or found sound
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
        """The newest sound checkpoint of this run; None where it has none yet. A warning names each that was passed over.

        Raises UserError where the files that are there cannot be used, not one of them, or the folder cannot be read.
        """
        while True:
            passed_over: dict[Path, str] = {}
            listed = checkpoints_in(self.folder)
            for _, path in reversed(listed):
                try:
                    found = self._read(path)
                except UnsoundError as error:
                    if not is_gone(path):  # else the run's writer has removed it
                        passed_over[path] = str(error)
                    continue
                for other, reason in passed_over.items():
                    say(f"warning: {other} is passed over ({reason}): using the checkpoint before it")
                self._note_sound(path)
                return found
            if passed_over:
                raise UserError(_none_is_sound(self.folder, passed_over))
            if not listed:
                return None

    def go_on_from(self, found: Checkpoint) -> None:
        """Call this, where the run is written, before it goes on from a checkpoint that `newest` gave.

        The checkpoints that were passed over get another name.
        """
        self.check()
        for iteration, path in checkpoints_in(self.folder):
            if (iteration, path.name) > (found.iteration, found.path.name):
                self._set_aside(path)

    def _write(self, iteration: int, state: dict[str, Any], best_iteration: int | None) -> bool:
        try:
            self._snapshots.wait()
            self.check()
            written = publish(self.folder, iteration, state)
        except OSError as error:
            reason = describe_os_error(error) or str(error)
            say(f"warning: checkpoint {iteration} was not saved ({reason}); it is tried again")
            return False
        self._note_sound(written)
        try:
            self._prune(iteration, written, best_iteration)
        except OSError as error:
            say(f"warning: older checkpoints than {written} were not removed ({describe_os_error(error) or error})")
        return True

    def _prune(self, iteration: int, written: Path, best_iteration: int | None) -> None:
        """Remove the checkpoints that the config does not keep, and the leftovers of writes that were killed.

        `written`, the checkpoint of `iteration`, stays. Files of later iterations, which somebody else has put there, are
        neither removed nor counted.
        """
        for leftover in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
            self._remove(leftover)
        every, kept = self.config.keep_every, 1
        for other, path in reversed(checkpoints_in(self.folder)):
            if other > iteration or path.name == written.name:
                continue
            if other < iteration and kept < self.config.keep_last:
                if self._is_sound(path):
                    kept += 1
                else:
                    self._set_aside(path)
                continue
            asked = (every and other % every == 0) or (self.config.keep_best and other == best_iteration)
            if other == iteration or not asked:  # of one iteration the last that was written
                self._remove(path)

    def _read(self, path: Path) -> Checkpoint:
        """`read_verified`; raises UnsoundError also where the state is none of this run."""
        found = read_verified(path)
        if reason := self.misfit(found.state):
            raise UnsoundError(reason)
        return found

    def _is_sound(self, path: Path) -> bool:
        """Whether `_read` takes a file, which is read only where it is not the one that was written or read before."""
        if path.name not in self._sound or self._sound[path.name] != _stamp(path):
            try:
                self._read(path)
            except UnsoundError:
                return False
            self._note_sound(path)
        return True

    def _note_sound(self, path: Path) -> None:
        if stamp := _stamp(path):
            self._sound[path.name] = stamp

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        """Give a file that is not to be used another name. Where that fails the file stays as it is, with a warning."""
        try:
            aside = set_aside_name(path)
            path.rename(aside)
        except OSError as error:
            say(f"warning: {path}, which is not used, was not renamed ({describe_os_error(error) or error})")
        else:
            say(f"warning: {path} is not used: it is now {aside.name}, which you may remove")


def publish(folder: Path, iteration: int, state: dict[str, Any]) -> Path:
    """Write one checkpoint, whole or not at all, also if the power fails. Returns its path."""
    assert state["iteration"] == iteration, "a checkpoint holds the iteration of its name"
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


def read_verified(path: Path) -> Checkpoint:
    """The checkpoint in a file. Raises UnsoundError where it is not sound, missing, or has another kind of name."""
    with _verified(path) as (file, iteration, sha256):
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # torch has no common class for what it cannot read
            raise UnsoundError(f"torch cannot read it: {type(error).__name__}") from None
    if not isinstance(state, dict) or "iteration" not in state:
        raise UnsoundError("it holds no training state")
    if state["iteration"] != iteration:
        raise UnsoundError(f"it holds iteration {state['iteration']}, unlike its name")
    return Checkpoint(path=path, iteration=iteration, sha256=sha256, state=state)


@contextmanager
def _verified(path: Path) -> Iterator[tuple[io.BufferedReader, int, str]]:
    """(the open file, iteration, SHA-256) of a checkpoint file whose digest is right. Raises as `read_verified`."""
    if (parts := checkpoint_parts(path)) is None:
        raise UnsoundError("its name is not that of a checkpoint")
    iteration, start = parts
    try:
        with open_regular(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if not sha256.startswith(start):
                raise UnsoundError("its digest differs")
            file.seek(0)
            yield file, iteration, sha256
    except OSError as error:
        if error.errno in _LACKING:
            raise
        reason = error.strerror or str(error)
        raise UnsoundError(reason[:1].lower() + reason[1:]) from None


# Size, time of the last change in ns and inode: what tells a file from another, without reading it.
_Stamp = tuple[int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _none_is_sound(folder: Path, passed_over: Mapping[Path, str]) -> str:
    named = [f"{path.name}: {reason}" for path, reason in list(passed_over.items())[:_NAMED]]
    more = len(passed_over) - len(named)
    listed = "; ".join([*named, *([f"and {more} more"] if more else [])])
    return (
        f"none of the checkpoints in {folder} can be used ({listed}): put a copy of one back (or the run's own config.yaml, "
        "where they are of other values), or move that folder away, and the run begins anew"
    )
