"""The probe's child process: decodes a few images on one rung and sends their pixels back. It may crash or hang; see `probe`.

In: a pickled Question on standard input. Out: a pickled Answer on what was standard output; whatever libraries print there
goes to standard error.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.dali_errors import DALI_ERRORS, reason_of
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.views import Views

_BATCHES = 2  # of the same images: a pipeline that works on one batch while another waits
_THREADS = 4
_GRACE_SECONDS = 10  # within which the parent, if it lives, has ended this process

Pixels = NDArray[Any]  # [..., H, W, 3]
Answer = list[list[Pixels | str]]  # for each trial and image its pixels, or why it did not decode


@dataclass(frozen=True)
class Trial:
    """Real images of a dataset, with the graph of one kind of loader and their views in it."""

    graph: Graph
    encoded: tuple[bytes, ...]
    views: Views

    def rows(self, rows: Sequence[int]) -> Trial:
        return Trial(self.graph, tuple(self.encoded[row] for row in rows), self.views.rows(np.array(rows, np.int64)))


@dataclass(frozen=True)
class Question:
    """What to decode where. seconds: after which this process ends by itself, should its parent have died."""

    trials: tuple[Trial, ...]
    device: torch.device
    seconds: float


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    question: Question = pickle.load(sys.stdin.buffer)
    signal.alarm(math.ceil(question.seconds) + _GRACE_SECONDS)
    with answers:
        pickle.dump(answer_to(question), answers)
    sys.stderr.flush()
    os._exit(0)  # a crash while libraries clear up would say nothing about decoding


def answer_to(question: Question) -> Answer:
    return [decoded(trial, question.device) for trial in question.trials]


def decoded(trial: Trial, device: torch.device) -> list[Pixels | str]:
    """Decode the images: one by one on the CPU's rung, where some may be damaged, and on others all as one batch."""
    count = len(trial.encoded)
    if trial.graph.rung == "cpu":
        return [_attempt(trial.rows([row]), device)[0] for row in range(count)]
    return _attempt(trial, device)


def _attempt(trial: Trial, device: torch.device) -> list[Pixels | str]:
    try:
        return list(pixels(trial, device))
    except DALI_ERRORS as error:
        return [reason_of(error)] * len(trial.encoded)


def pixels(trial: Trial, device: torch.device) -> Iterator[Pixels]:
    """Decode the images as one batch, twice, and yield those of the last. Raises one of DALI_ERRORS."""
    inputs = trial.graph.inputs(trial.encoded, trial.views)

    def source() -> Inputs:
        return inputs

    pipeline = trial.graph.build(source, len(trial.encoded), device, _THREADS, _BATCHES)
    for _ in range(_BATCHES):
        (outputs,) = pipeline.run()
    images = outputs.as_cpu()
    for row in range(len(trial.encoded)):
        yield np.array(images.at(row))


if __name__ == "__main__":
    main()
