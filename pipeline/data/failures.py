"""Finds the images that do not decode, and substitutes other samples for them.

DALI reports that a batch failed, not which image, and its pipeline is unusable afterwards. So each image of the batches
in flight passes through the same graph alone. Whether an image fails depends only on the image and its view, so neither
the batch nor the world size decides what is substituted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.base.command import UserError
from pipeline.data.augment import Views
from pipeline.data.batch import BatchRequest, BatchStream
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.order import Presentations

_TRIES = 100  # so many neighbours do not all fail by accident


def failures(graph: Graph, encoded: Sequence[bytes], views: Views, device: torch.device) -> dict[int, str]:
    """Return the rows whose images do not pass through `graph`, each with DALI's reason."""
    reasons: dict[int, str] = {}
    rows, row = iter(range(len(encoded))), -1

    def next_image() -> Inputs:
        nonlocal row
        row = next(rows)  # its StopIteration ends the pipeline
        return graph.inputs([encoded[row]], views.rows(slice(row, row + 1)))

    while True:
        pipeline = graph.build(next_image, batch=1, device=device, threads=1, queue=1)
        try:
            while True:
                pipeline.run()
        except StopIteration:
            return reasons
        except RuntimeError as error:
            reasons[row] = _reason(str(error))


def substitute(
    stream: BatchStream, graph: Graph, request: BatchRequest, encoded: list[bytes], row: int, device: torch.device
) -> BatchRequest:
    """Return `request` with the next sample that decodes in place of `row`, in the same epoch; replace `encoded[row]` too."""
    original, split = request.presentations, stream.split
    for step in range(1, _TRIES + 1):
        ids = original.ids.copy()
        ids[row] = (ids[row] + step) % len(split)
        candidate = stream.request(Presentations(original.epochs, ids))
        image = split.read(int(ids[row]))
        if not failures(graph, [image], candidate.views.rows(slice(row, row + 1)), device):
            encoded[row] = image
            return candidate
    raise UserError(
        f"{split.describe(int(original.ids[row]))} and the {_TRIES} samples after it do not decode: "
        "check the dataset with data_prep/verify.py"
    )


def _reason(message: str) -> str:
    """Return the informative lines of a DALI error, without the operator's place in DALI's graph and C++ sources."""
    lines = [line.strip() for line in message.splitlines()]
    start = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    kept = [line for line in lines[start:] if line and not line.startswith(("C++ context", "Current pipeline"))]
    return " ".join(kept)[:300] or "no reason given"
