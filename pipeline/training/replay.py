"""The whole update as one CUDA graph: recorded once, then started by a single launch.

An update of a small net is some thousand kernels of a few microseconds each; the host takes longer to launch them one by
one than the device to run them. A graph is launched as one, and computes what the recorded update computed, bit for bit,
at the same addresses. Numbers that the host chose during the recording are part of the graph: see `ReplayedUpdate`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.process.world import World

# Updates that run as usual before one is recorded: the first ones choose cuDNN's algorithms and compile kernels, which a
# recording must not contain. PyTorch's documentation of CUDA graphs has three.
WARM_UP = 3


class Recorder(Protocol):
    """Runs work, or records it. Work reads and writes tensors on a device and returns one."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run `work`, in the stream that a recording uses."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(replay, result): each call of `replay` does what `work` would do, into the same `result`.

        Recording itself computes nothing.
        """


class CudaGraphs:
    """Records CUDA graphs, on a separate stream: a device's default stream cannot be recorded."""

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
            # thread_local: the loader's thread may allocate and copy meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:  # CUDA's too: torch.AcceleratorError is a RuntimeError
            message = " ".join(str(error).split())[:300]
            raise UserError(
                f"the update could not be recorded as a CUDA graph ({message}): start the same command again with "
                "--cuda-graph false, which goes on from the last checkpoint"
            ) from error
        return graph.replay, result


class ReplayedUpdate:
    """`update(images, labels)` -> metrics, replayed from a recording once the same `decided` came WARM_UP times in a row.

    `update` may read and write any tensors that keep their addresses. It must not wait for the device.
    """

    def __init__(self, update: Callable[[Tensor, Tensor], Tensor], recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._key: Hashable = None
        self._updates = 0  # run as usual since the key changed
        self._images, self._labels = torch.empty(0), torch.empty(0)
        self._recorded: tuple[Callable[[], None], Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor, decided: Hashable) -> Tensor:
        """Make one update. decided: the numbers that the host puts into the update, such as the learning rate.

        A recording is for one shape of the images and one value of `decided`: after a change the next updates run as
        usual, until one is recorded again.
        """
        key = (images.shape, images.dtype, decided)
        if key != self._key:
            self._key, self._updates, self._recorded = key, 0, None
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._updates < WARM_UP:
            self._updates += 1
            return self._recorder.run(self._work)
        if self._recorded is None:
            self._recorded = self._recorder.record(self._work)
        replay, result = self._recorded
        replay()
        return result.clone()  # the next replay overwrites it

    def _work(self) -> Tensor:
        return self._update(self._images, self._labels)


def cuda_graphs(wanted: bool, world: World) -> Recorder | None:
    """The recorder of a run with `cuda_graph`; None where updates run kernel by kernel.

    They do so on a CPU, and where several ranks sum their gradients: DDP's hooks run on the host.
    """
    return CudaGraphs(world.device) if wanted and world.device.type == "cuda" and world.size == 1 else None
