"""The whole update as one CUDA graph: recorded once, then started by a single launch.

An update of a small net is some thousand kernels of a few microseconds each; the host takes longer to launch them one by
one than the device to run them. A graph is launched as one, and computes what the recorded update computed, bit for bit,
in the same places of memory. What the host decided while it was recorded stays decided: see `ReplayedUpdate`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.process.world import World

# Updates that are carried out as usual before one is recorded: the first ones choose cuDNN's algorithms and compile
# kernels, which a recording must not contain. PyTorch's documentation of CUDA graphs has three.
WARM_UP = 3


class Recorder(Protocol):
    """Carries work out now, or records it. Work reads and writes tensors on a device and returns one."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Carry `work` out, in the surroundings that a recording would have."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(replay, result): each call of `replay` carries out what `work` would have done, into the same `result`.

        Recording itself carries out nothing.
        """


class CudaGraphs:
    """Records into CUDA graphs, on a stream of its own: a device's default stream cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """As in `Recorder`. Raises UserError where the work cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loader's thread goes on allocating and copying meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:  # of CUDA: torch.AcceleratorError is one
            told = " ".join(str(error).split())[:300]
            raise UserError(
                f"the update could not be recorded as a CUDA graph ({told}): start the same command again with "
                "--cuda-graph false, which goes on from the last checkpoint"
            ) from error
        return graph.replay, result


class ReplayedUpdate:
    """`update(images, labels)` -> metrics, replayed from a recording once its surroundings have stayed the same for a while.

    `update` may read and write any tensors that stay where they are in memory. It must not wait for the device.
    """

    def __init__(self, update: Callable[[Tensor, Tensor], Tensor], recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._key: Hashable = None
        self._made = 0  # updates since the key changed
        self._images, self._labels = torch.empty(0), torch.empty(0)
        self._recorded: tuple[Callable[[], None], Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor, decided: Hashable) -> Tensor:
        """One update. `decided`: the numbers that the host puts into it, such as the learning rate.

        A recording holds for one shape of the images and one value of `decided`: a change makes the next updates ordinary
        ones, until a new one is recorded.
        """
        key = (images.shape, images.dtype, decided)
        if key != self._key:
            self._key, self._made, self._recorded = key, 0, None
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._made < WARM_UP:
            self._made += 1
            return self._recorder.run(self._work)
        if self._recorded is None:
            self._recorded = self._recorder.record(self._work)
        replay, result = self._recorded
        replay()
        return result.clone()  # the next replay writes there

    def _work(self) -> Tensor:
        return self._update(self._images, self._labels)


def cuda_graphs(wanted: bool, world: World) -> Recorder | None:
    """The recorder of a run with `cuda_graph`; None where updates are made one kernel at a time.

    That is on a CPU, and where several ranks add up their gradients: DDP's hooks run on the host.
    """
    return CudaGraphs(world.device) if wanted and world.device.type == "cuda" and world.size == 1 else None
