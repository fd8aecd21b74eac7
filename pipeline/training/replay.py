"""The update as CUDA graphs: recorded once, then started by a launch or two.

An update of a small net is some thousand kernels of a few microseconds each; the host takes longer to launch them one by
one than the device to run them. A graph is launched as one, and computes what the recorded work computed, bit for bit,
at the same addresses. Numbers that the host chose during the recording are part of the graph, so work that is recorded
reads what changes, such as the learning rate, from tensors.

The sum of gradients over ranks stays outside, between two graphs: what it waits for is on other hosts, and the ways to sum
(a backend's all-reduce, the tree's levels) need not know of recordings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.process.world import World

T = TypeVar("T")

# Updates that run as usual before one is recorded: the first ones choose cuDNN's algorithms and compile kernels, which a
# recording must not contain. PyTorch's documentation of CUDA graphs has three.
WARM_UP = 3


class Recorder(Protocol):
    """Runs work, or records it. Work reads and writes tensors on a device; its result is a tensor or None."""

    def run(self, work: Callable[[], T]) -> T:
        """Run `work`, in the stream that a recording uses."""

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """(replay, result): each call of `replay` does what `work` would do, into the same `result`.

        Recording itself computes nothing.
        """


class CudaGraphs:
    """Records CUDA graphs, on a separate stream: a device's default stream cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        # torch has 32 streams of each priority and hands them out in turn. Of normal priority, every loader takes some: the
        # one of a later evaluation or training would be this very stream, and what a loader's thread queues while a
        # recording lasts would become part of the graph. Nothing else here takes streams of high priority (NCCL does, a few,
        # where TORCH_NCCL_HIGH_PRIORITY is set). What it means beside that: where the kernels of an update and of a decoder
        # wait, the update's go first.
        self.device, self.stream = device, torch.cuda.Stream(device, priority=-1)

    def run(self, work: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """As in `Recorder`. Raises UserError where the work cannot be recorded, torch.OutOfMemoryError where memory ends."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loader's thread may allocate, copy and wait for its own events meanwhile, and NCCL's may ask
            # for its events. In no mode may any thread wait for the whole device: that fails, and so does the recording.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:  # CUDA's too: torch.AcceleratorError is a RuntimeError
            for cause in (error, error.__context__):  # the context: ending a recording that failed may fail as well
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            message = " ".join(str(error).split())[:300]
            raise UserError(
                f"the update could not be recorded as a CUDA graph ({message}): start the same command again with "
                f"{_older_nccl()}--cuda-graph false, which goes on from the last checkpoint"
            ) from error
        return graph.replay, result


def _older_nccl() -> str:
    """What ranks that sum by NCCL may try first: torch 2.15 has a new backend for it, and the older one still."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not several or torch.__version__ < "2.15" or os.environ.get("TORCH_DIST_USE_NCCL2") == "0":
        return ""
    return "TORCH_DIST_USE_NCCL2=0 in its environment (torch's older NCCL backend) or with "


@dataclass(frozen=True, kw_only=True)
class Update:
    """An update in three pieces. The first and the last may be recorded: they must not wait for the device.

    compute: `compute(images, labels, ...)` -> metrics, with this rank's gradients left at some address. reduce: sums them
    over the ranks in place; runs as it is. apply: `apply(metrics)` updates the weights and completes the metrics in place.
    """

    compute: Callable[..., Tensor]
    reduce: Callable[[], None]
    apply: Callable[[Tensor], None]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make one update; returns its metrics."""
        metrics = self.compute(*inputs)
        self.reduce()
        self.apply(metrics)
        return metrics


class ReplayedUpdate:
    """`update(images, labels, ...)` -> metrics, replayed from recordings once WARM_UP updates had inputs of the same shapes.

    The pieces of the update may read and write any tensors that keep their addresses.
    """

    def __init__(self, update: Update, recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._key: list[tuple[torch.Size, torch.dtype]] | None = None
        self._updates = 0  # run as usual since the key changed
        self._inputs: list[Tensor] = []
        self._recorded: tuple[Callable[[], None], Callable[[], None], Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make one update. Images of another shape (progressive resizing) run as usual until they are recorded, too."""
        key = [(one.shape, one.dtype) for one in inputs]
        if key != self._key:
            self._key, self._updates, self._recorded = key, 0, None
            self._inputs = [torch.empty_like(one) for one in inputs]
        for place, one in zip(self._inputs, inputs, strict=True):
            place.copy_(one)
        if self._updates < WARM_UP:
            self._updates += 1
            return self._as_usual()
        if self._recorded is None:
            compute, metrics = self._recorder.record(self._compute)
            apply, _ = self._recorder.record(lambda: self._update.apply(metrics))
            self._recorded = compute, apply, metrics
        compute, apply, metrics = self._recorded
        compute()
        self._update.reduce()
        apply()
        return metrics.clone()  # the next replay overwrites it

    def _as_usual(self) -> Tensor:
        metrics = self._recorder.run(self._compute)
        self._update.reduce()
        self._recorder.run(lambda: self._update.apply(metrics))
        return metrics

    def _compute(self) -> Tensor:
        return self._update.compute(*self._inputs)


def cuda_graphs(wanted: bool, world: World) -> Recorder | None:
    """The recorder of a run with `cuda_graph`; None where updates run kernel by kernel, as on a CPU."""
    return CudaGraphs(world.device) if wanted and world.device.type == "cuda" else None
