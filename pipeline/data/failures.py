"""Tells damaged images from a decoder that fails on sound ones, and substitutes other samples for damaged images.

DALI reports that a batch failed, not which image, and its pipeline is unusable afterwards. So the images in question pass
through the same graph one by one. The CPU's decoder has the last word: an image that it decodes is sound, and if the GPU
fails on it, the GPU's decoder is to blame and nothing is substituted. An image whose header cannot be read, or claims another
size than the sample table has, is damaged without a trial (`data/headers.py`); a doubtful one is judged by the CPU alone, also
where the GPU would take it. Thus whether an image counts as damaged depends only on the image, its view and the rung of
decoding; neither the batch nor the world size decides what is substituted. Where memory was exhausted, no image is to blame.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.base.command import UserError
from pipeline.data.batch import BatchRequest, BatchStream
from pipeline.data.dali_errors import DALI_ERRORS, is_of_memory, reason_of
from pipeline.data.dataset import Split
from pipeline.data.decoders import lower_rungs
from pipeline.data.graphs import Graph, Inputs
from pipeline.data.headers import header_fault, is_doubtful
from pipeline.data.order import Presentations
from pipeline.data.views import Int, Views

_CPU = torch.device("cpu")
_TRIES = 100  # so many neighbours do not all fail by accident


def failures(
    graph: Graph, encoded: Sequence[bytes], views: Views, device: torch.device, rows: Collection[int]
) -> dict[int, str]:
    """Return those of `rows` whose images do not pass through `graph` alone, each with DALI's reason.

    Raises one of DALI_ERRORS if the graph cannot be built, or if memory is exhausted.
    """
    reasons: dict[int, str] = {}
    left, row = iter(rows), -1

    def next_image() -> Inputs:
        nonlocal row
        row = next(left)  # its StopIteration ends the pipeline
        return graph.inputs([encoded[row]], views.rows(slice(row, row + 1)))

    while len(rows):
        pipeline = graph.build(next_image, batch=1, device=device, threads=1, queue=1)
        try:
            while True:
                pipeline.run()
        except StopIteration:
            break
        except DALI_ERRORS as error:
            if is_of_memory(error):
                raise
            reasons[row] = reason_of(error)
    return reasons


def header_faults(split: Split, ids: Int, encoded: Sequence[bytes], rows: Collection[int]) -> dict[int, str]:
    """Return those of `rows` whose images' headers are not what the sample table says of them, each with a reason.

    ids: int64 [N], the samples whose images are `encoded`.
    """
    table = split.samples[ids]
    heights, widths = table["height"].tolist(), table["width"].tolist()
    faults = {row: header_fault(encoded[row], heights[row], widths[row]) for row in rows}
    return {row: fault for row, fault in faults.items() if fault is not None}


@dataclass(frozen=True)
class Judge:
    """Says which images of a stream's batches are damaged. `graph` decodes them for batches on `device`.

    decoder: its name for messages, asked for in time: a GPU that failed may not tell.
    """

    stream: BatchStream
    graph: Graph
    device: torch.device
    decoder: str

    def damaged(self, request: BatchRequest, encoded: Sequence[bytes], rows: Collection[int]) -> dict[int, str]:
        """Return those of `rows` whose images are damaged, with a reason.

        Raises UserError if the GPU's decoder fails, or if memory is exhausted.
        """
        try:
            return self._damaged(request, encoded, rows)
        except DALI_ERRORS as error:
            if is_of_memory(error):
                raise self.out_of_memory(error) from error
            raise

    def _damaged(self, request: BatchRequest, encoded: Sequence[bytes], rows: Collection[int]) -> dict[int, str]:
        refused = header_faults(self.stream.split, request.presentations.ids, encoded, rows)
        rows = [row for row in rows if row not in refused]
        on_cpu = replace(self.graph, rung="cpu", normalization=None)
        if self.graph.rung == "cpu":
            return refused | failures(on_cpu, encoded, request.views, _CPU, rows)
        doubtful = [row for row in rows if is_doubtful(encoded[row])]
        refused |= failures(on_cpu, encoded, request.views, _CPU, doubtful)
        on_gpu, others = replace(self.graph, normalization=None), [row for row in rows if row not in refused]
        try:
            suspects = failures(on_gpu, encoded, request.views, self.device, others)
        except RuntimeError as error:  # not even the graph can be built
            if is_of_memory(error):
                raise
            raise self.gpu_failed("", error) from error
        # Of the whole image, because the damage of a truncated one may lie below its window.
        whole = replace(on_cpu, kind="source")
        refused |= failures(whole, encoded, request.views, _CPU, suspects.keys())
        if sound := suspects.keys() - refused.keys():
            sample = self.stream.split.describe(int(request.presentations.ids[min(sound)]))
            raise self.gpu_failed(f" on {sample}, which the CPU decodes", suspects[min(sound)])
        return refused

    def gpu_failed(self, where: str, reason: BaseException | str) -> UserError:
        """Return what to raise where the GPU failed on no damaged image. where: ends the words "decoding failed"."""
        rung, said = self.graph.rung, reason_of(reason) if isinstance(reason, BaseException) else reason
        return UserError(
            f"decoding on the GPU ({self.decoder}, loader.decode_on: {rung}) failed{where} ({said}): "
            f"set loader.decode_on to {' or '.join(lower_rungs(rung))} and give the same command again, "
            "a training then goes on from its last checkpoint"
        )

    def out_of_memory(self, reason: BaseException) -> UserError:
        """Return what to raise where decoding found no memory."""
        return UserError(
            f"decoding ran out of memory ({self.decoder}, loader.decode_on: {self.graph.rung}; {reason_of(reason)}): lower "
            "loader.threads or loader.decode_ahead, or share the batch among more GPUs, and start the same command again, "
            "a training then goes on from its last checkpoint"
        )

    def substitute(self, request: BatchRequest, encoded: list[bytes], row: int) -> BatchRequest:
        """Return `request` with the next sound sample in place of `row`, in the same epoch; replace `encoded[row]` too."""
        original, split = request.presentations, self.stream.split
        for step in range(1, _TRIES + 1):
            ids = original.ids.copy()
            ids[row] = (ids[row] + step) % len(split)
            candidate = self.stream.request(Presentations(original.epochs, ids))
            tried = list(encoded)
            tried[row] = split.read(int(ids[row]))
            if not self.damaged(candidate, tried, [row]):
                encoded[row] = tried[row]
                return candidate
        raise UserError(
            f"{split.describe(int(original.ids[row]))} and the {_TRIES} samples after it do not decode: "
            "check the dataset with data_prep/verify.py"
        )
