"""Images that do not decode: which ones they are, and what takes their place.

DALI says that a batch failed, not which image, and its pipeline is of no use afterwards. So each image of the batches
in flight is passed through the same graph alone. Whether an image fails depends on the image and its view only: neither
the batch nor the world size decides what is substituted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.base.command import UserError
from pipeline.data.augment import Views
from pipeline.data.batch import Plan, Work
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.order import Presentations

_TRIES = 100  # neighbours that all fail are no accident


def failures(graph: Graph, encoded: Sequence[bytes], views: Views, device: torch.device) -> dict[int, str]:
    """The rows whose images do not pass through `graph`, each with DALI's reason."""
    found: dict[int, str] = {}
    row = -1

    def next_image() -> Inputs:
        nonlocal row
        row += 1
        if row == len(encoded):
            raise StopIteration
        return graph.inputs([encoded[row]], views.rows(slice(row, row + 1)))

    while row < len(encoded):
        pipeline = graph.build(next_image, batch=1, device=device, threads=1, queue=1)
        try:
            while True:
                pipeline.schedule_run()
                pipeline.share_outputs()
                pipeline.release_outputs()
        except StopIteration:
            break
        except RuntimeError as error:
            found[row] = _reason(str(error))
    return found


def substitute(plan: Plan, graph: Graph, work: Work, encoded: list[bytes], row: int, device: torch.device) -> Work:
    """`work` with the next sample that decodes in a row's place, in the same epoch; replaces `encoded[row]` too."""
    for step in range(1, _TRIES + 1):
        ids = work.shown.ids.copy()
        ids[row] = (ids[row] + step) % len(plan.split)
        candidate = plan.work(Presentations(work.shown.epochs, ids))
        image = plan.split.read(int(ids[row]))
        if not failures(graph, [image], candidate.views.rows(slice(row, row + 1)), device):
            encoded[row] = image
            return candidate
    raise UserError(
        f"{plan.split.describe(int(work.shown.ids[row]))} and the {_TRIES} samples after it do not decode: "
        "check the dataset with data_prep/verify.py"
    )


def _reason(message: str) -> str:
    """The informative lines of a DALI error: not where in its own graph and C++ sources the operator stands."""
    lines = [line.strip() for line in message.splitlines()]
    start = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    kept = [line for line in lines[start:] if line and not line.startswith(("C++ context", "Current pipeline"))]
    return " ".join(kept)[:300] or "no reason given"
