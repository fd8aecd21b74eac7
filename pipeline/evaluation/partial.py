"""Keeps the scores of an unfinished evaluation in a file beside the future score file, so that it can be interrupted."""

from __future__ import annotations

import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.files import replacing
from pipeline.base.regular import open_regular

WRITE_SECONDS = 30.0  # between two writes; a kill loses at most so much


class PartialScores:
    """Scores float16 [samples, classes] that fill up row by row; a context manager that writes them if an error ends it.

    path: the file; None keeps none. Scores already in the file are taken over if it has this evaluation's fingerprint.
    """

    def __init__(self, samples: int, classes: int, fingerprint: str, path: Path | None) -> None:
        self.scores = np.zeros((samples, classes), dtype=np.float16)
        self.fingerprint, self.path = fingerprint, path
        self._scored = np.zeros(samples, dtype=bool)
        self._written = time.monotonic()
        if path is not None and path.exists():
            self._take_over(path)

    def has(self, ids: NDArray[np.int64]) -> bool:
        """Return whether all of these samples are scored."""
        return bool(self._scored[ids].all())

    def add(self, ids: NDArray[np.int64], rows: NDArray[np.float16]) -> None:
        """Add the scores of the samples `ids`: the first len(ids) rows."""
        self.scores[ids] = rows[: len(ids)]
        self._scored[ids] = True
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return  # the caller writes the score file next
        with suppress(OSError):  # report the error that stopped the evaluation, not this one
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.path is None or not self._scored.any():
            return
        ids = np.flatnonzero(self._scored)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            np.savez(file, allow_pickle=False, fingerprint=self.fingerprint, ids=ids, scores=self.scores[ids])

    def _take_over(self, path: Path) -> None:
        try:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
                if str(arrays["fingerprint"]) != self.fingerprint:
                    return
                ids = arrays["ids"]
                self.scores[ids] = arrays["scores"]
                self._scored[ids] = True
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            print(f"warning: {path} is damaged ({error}): evaluating from the start", file=sys.stderr)
