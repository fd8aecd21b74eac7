"""The sum of a mini-batch's gradients over micro-batches and ranks: in one binary tree (tree.py), or as the backend likes."""

# No `from __future__ import annotations`: DDP checks the hook's annotations and does not resolve strings.

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.process.stragglers import SumWaits
from pipeline.process.world import World, wait_for_all_ranks
from pipeline.training.flat import FlatGradients
from pipeline.training.spans import span
from pipeline.training.tree import TreeAccumulator, tree_all_reduce, tree_all_reduce_nccl, tree_levels


class GradientReducer:
    """Adds up a mini-batch's gradients: over this rank's micro-batches, then over the ranks.

    With DDP, `hook` does both: it is DDP's communication hook, and each bucket is summed while the backward pass goes on.
    Without DDP (one rank, or a recorded update), `finish_locally` does the first and `sum_over_ranks` the second.

    mode: see `choose_mode`. compression: bf16 halves the traffic and needs mode allreduce. It rounds each rank's sum and the
    sums of ranks to bfloat16, so the result depends on the number of ranks. A tree that rounds would have to round every
    addition within a rank too, and would lose digits where nothing travels.
    flat: where the gradients lie for `sum_over_ranks`; None with DDP, and with one rank. waits: for the other ranks.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        mode: Literal["tree", "allreduce"],
        world: World,
        compression: Literal["none", "bf16"] = "none",
        without_ddp: bool = False,
    ) -> None:
        """A collective: every rank calls it. without_ddp: several ranks call `sum_over_ranks`, and `hook` is not used."""
        assert compression == "none" or mode == "allreduce"
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.index = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self.mode, self.device, self.compression = mode, world.device, compression
        self.note = partial(world.watchdog.note, "gradient reduction")
        self.waits = SumWaits(world.device)
        self.accumulator = TreeAccumulator()
        on_gpu = world.device.type == "cuda"
        # Separate groups: their collectives interleave with no others. Every rank makes them at the same place.
        self.groups: list[dist.ProcessGroup] = []
        if world.size > 1 and mode == "tree" and on_gpu:
            self.groups = tree_levels(world)
        elif world.size > 1:
            self.groups = [cast(dist.ProcessGroup, dist.new_group())]
            wait_for_all_ranks()
        self.flat: FlatGradients | None = None
        if world.size > 1 and without_ddp:
            self.flat = FlatGradients(self.parameters, world.size)
            self.flat.broadcast_parameters()
        # Buckets become ready in the same order on every rank, and that order is kept while backward goes on: on a GPU by
        # one stream, on a CPU by one thread (it never starts on a GPU, so it needs no current device).
        self._stream = torch.cuda.Stream(world.device) if on_gpu else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reduce")

    def push_gradients(self) -> None:
        """Take the gradients of a micro-batch that is not the rank's last, and clear them."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "a parameter took no part in the loss"
            gradients.append(parameter.grad)
            parameter.grad = None
        self.accumulator.push(gradients)

    def finish_locally(self) -> None:
        """Add the pushed gradients to the last micro-batch's, in place."""
        for number, parameter in enumerate(self.parameters):
            assert parameter.grad is not None, "a parameter took no part in the loss"
            self.accumulator.add_last(number, parameter.grad)
        self.accumulator = TreeAccumulator()
        if self.flat is not None:
            self.flat.take()

    def sum_over_ranks(self) -> None:
        """Sum what `finish_locally` left over the ranks, in the current stream.

        The whole gradient travels at once, so no part of it travels during the backward pass. The tree adds element by
        element: it gives DDP's bits, whose buckets cut the gradient elsewhere. An all-reduce of more than two ranks does not.
        """
        if self.flat is None:
            return
        self._arrive()
        with span("sum gradients over ranks"):
            self._sum(self.flat.buffer)
        self.waits.end()

    def _arrive(self) -> None:
        """This rank's sums are computed, and its wait for the other ranks begins."""
        self.note()
        self.waits.begin()

    def hook(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """DDP communication hook (see torch.nn.parallel.DistributedDataParallel.register_comm_hook)."""
        buffer, offset = bucket.buffer(), 0
        for parameter in bucket.parameters():
            # A gradient lies in the bucket with its parameter's strides (channels_last); bucket.gradients() would read
            # it as contiguous.
            place = buffer.narrow(0, offset, parameter.numel())
            gradient = place.as_strided(parameter.shape, parameter.stride())
            self.accumulator.add_last(self.index[id(parameter)], gradient)
            offset += parameter.numel()
        last = bucket.is_last()
        if last:
            self._arrive()
            self.accumulator = TreeAccumulator()
        # Not by the collective's own future: torch 2.15 has NCCL's make the backward pass wait for the collective.
        if self._stream is not None:
            return self._sum_on_stream(buffer, self._stream, last)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        self._thread.submit(self._sum_in_thread, buffer, future, last)
        return future

    def _sum_in_thread(self, buffer: Tensor, future: torch.futures.Future[Tensor], last: bool) -> None:
        try:
            self._sum(buffer)
            if last:
                self.waits.end()
            future.set_result(buffer)
        except Exception as error:
            future.set_exception(error)  # type: ignore[arg-type]

    def _sum_on_stream(self, buffer: Tensor, stream: torch.cuda.Stream, last: bool) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[self.device])
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            buffer.record_stream(stream)
            self._sum(buffer)
            if last:
                self.waits.end()
            future.set_result(buffer)
        return future

    def _sum(self, buffer: Tensor) -> None:
        """Sum `buffer` over the ranks, in place and in the current stream."""
        if self.mode == "tree" and self.device.type == "cuda":
            tree_all_reduce_nccl(buffer, self.groups)
        elif self.mode == "tree":
            tree_all_reduce(buffer, self.groups[0])
        else:
            # bfloat16 has float32's range: no scale is needed.
            sent = buffer.to(torch.bfloat16) if self.compression == "bf16" else buffer
            dist.all_reduce(sent, group=self.groups[0])
            if sent is not buffer:
                buffer.copy_(sent)

    def close(self) -> None:
        self._thread.shutdown()


def choose_mode(
    wanted: Literal["auto", "tree", "allreduce"],
    world_size: int,
    micro_batches: int,
    compression: Literal["none", "bf16"] = "none",
) -> Literal["tree", "allreduce"]:
    """Resolve `reduction`: tree needs a power of two of ranks, and of micro-batches on each, and no compression.

    Raises UserError where tree is asked for and impossible.
    """
    if compression != "none":
        if wanted == "tree":
            raise UserError(
                f"gradient_compression {compression} rounds gradients between ranks, and reduction tree promises the same "
                "bits on any number of ranks: use reduction allreduce, or gradient_compression none"
            )
        return "allreduce"
    possible = all(number & (number - 1) == 0 for number in (world_size, micro_batches))
    if wanted == "tree" and not possible:
        raise UserError(
            f"reduction is 'tree' but {world_size} ranks of {micro_batches} micro-batches make no binary tree: "
            "use powers of two, or reduction: allreduce"
        )
    return "tree" if possible and wanted != "allreduce" else "allreduce"
