"""Decoders of a GPU that crash, raise, hang or give garbage, emulated on the CPU: the probe's real child, with another build.

A child is forked from a process that has the imports (tests/ranks.py), because a fresh one takes seconds for them.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal
from unittest.mock import patch

import torch

from pipeline.data import probing
from pipeline.data.graphs import Graph
from pipeline.data.probe import Ended
from pipeline.data.probing import Pixels, Trial
from tests.ranks import CONTEXT, start_server

Fault = Literal["crash", "raise", "hang", "garbage"]
Faults = Mapping[str, Fault]  # by rung; the others decode on the CPU as a sound GPU would
CPU = torch.device("cpu")
HANGING_SECONDS = 1.0  # that a child which will not answer is waited for
REASON = "nvImageCodec failure: '#8'"


@dataclass(frozen=True)
class Emulated:
    """Runs a child as `probe.run_child` does."""

    faults: Faults

    def __call__(self, question: bytes, limit: float) -> Ended:
        start_server()
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_child, args=(dict(self.faults), question, sender), daemon=True)
        process.start()
        sender.close()
        try:
            hangs = any(self.faults.get(trial.graph.rung) == "hang" for trial in pickle.loads(question).trials)
            if not receiver.poll(HANGING_SECONDS if hangs else limit):
                return Ended(None)
            try:
                output = receiver.recv_bytes()
            except EOFError:
                output = b""
            process.join()
            assert process.exitcode is not None
            return Ended(process.exitcode, output)
        finally:
            process.kill()
            process.join()


def _child(faults: Faults, question: bytes, sender: Connection) -> None:
    build, pixels = Graph.build, probing.pixels

    def emulated(graph: Graph, source: Any, batch: int, device: torch.device, threads: int, queue: int) -> Any:
        fault = faults.get(graph.rung)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(3600)
        if fault == "raise":
            raise RuntimeError(
                f"Critical error in pipeline:\nencountered:\n{REASON}\nCurrent pipeline object is invalid."
            )
        return build(graph, source, batch, CPU, threads, queue)

    def upside_down(trial: Trial, device: torch.device) -> Iterator[Pixels]:
        turned = faults.get(trial.graph.rung) == "garbage"
        return (image[::-1] if turned else image for image in pixels(trial, device))

    with patch.object(Graph, "build", emulated), patch.object(probing, "pixels", upside_down):
        sender.send_bytes(pickle.dumps(probing.answer_to(pickle.loads(question))))
    sender.close()
    os._exit(0)
