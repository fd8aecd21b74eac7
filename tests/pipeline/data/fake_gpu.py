"""A GPU played by the CPU, for what the loader does around one: its branches for a GPU run, and decoders may fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.data.finishing import Finish
from pipeline.data.graphs import Graph, Inputs, Normalization
from pipeline.data.views import Views

CPU = torch.device("cpu")


class Stream:
    cuda_stream = 0


class Event:
    """Has happened as soon as it is recorded: the CPU does everything at once."""

    def record(self, stream: object) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class GpuFinish(Finish):
    """The part of Finish for a GPU, on the CPU."""

    def __init__(
        self, normalization: Normalization, dtype: torch.dtype = torch.float32, pad: int | None = None
    ) -> None:
        super().__init__(normalization, CPU, torch.float32, pad)
        self.dtype, self.stream = dtype, Stream()  # type: ignore[assignment]


@dataclass(frozen=True)
class FailingGraph(Graph):
    """Fails on the images of `broken` wherever its decoder is that of a GPU."""

    broken: tuple[bytes, ...] = ()
    alone: bool = True  # whether it fails on such an image alone, too

    def inputs(self, encoded: Sequence[bytes], views: Views) -> Inputs:
        if self.rung != "cpu" and (self.alone or len(encoded) > 1):
            encoded = [image[: len(image) // 2] if image in self.broken else image for image in encoded]
        return super().inputs(encoded, views)
