"""Gradient sums in one fixed binary tree, whatever the number of ranks (contract 4).

The leaves are the gradients of the mini-batch's micro-batches in row order. Within a rank they are added as a binary
counter counts: two sums of equal level make one of the next level. Across ranks they are added by recursive halving and
doubling, whose partners at distance 1, 2, 4 ... are the next levels of the same tree. Floating-point addition commutes,
so every rank, and every power-of-two number of ranks, gets the same bits.
"""

# No `from __future__ import annotations`: DDP checks the hook's annotations and does not resolve strings.

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.process.world import wait_for_all_ranks


class TreeAccumulator:
    """Adds up lists of tensors, which are pushed one by one, as a binary counter counts."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, list[Tensor]]] = []  # (level, sums of 2**level pushes), levels falling

    def push(self, tensors: list[Tensor]) -> None:
        """Add one leaf. The accumulator keeps the tensors and adds into them in place."""
        level = 0
        while self._stack and self._stack[-1][0] == level:
            below = self._stack.pop()[1]
            torch._foreach_add_(below, tensors)
            level, tensors = level + 1, below
        self._stack.append((level, tensors))

    def add_last(self, index: int, last: Tensor) -> None:
        """Add everything pushed for tensor number `index` into `last`, the final leaf, in place and in tree order."""
        for _, tensors in reversed(self._stack):
            last.add_(tensors[index])


def tree_all_reduce(buffer: Tensor, group: dist.ProcessGroup | None) -> None:
    """Sum a 1-d `buffer` over the ranks of `group` in place, by recursive halving and doubling over send and receive.

    The number of ranks must be a power of two. Moves 2 (W-1)/W of the buffer per rank, as a ring all-reduce does.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    assert size & (size - 1) == 0 and buffer.ndim == 1
    low, high = 0, buffer.numel()
    held: list[tuple[int, int, int]] = []
    distance = 1
    while distance < size:
        partner, middle = rank ^ distance, (low + high) // 2
        mine, theirs = ((middle, high), (low, middle)) if rank & distance else ((low, middle), (middle, high))
        received = torch.empty_like(buffer[mine[0] : mine[1]])
        _exchange(buffer[theirs[0] : theirs[1]], received, partner, group)
        buffer[mine[0] : mine[1]].add_(received)
        held.append((partner, low, high))
        (low, high), distance = mine, distance * 2
    for partner, outer_low, outer_high in reversed(held):
        theirs = (outer_low, low) if low > outer_low else (high, outer_high)
        _exchange(buffer[low:high], buffer[theirs[0] : theirs[1]], partner, group)
        low, high = outer_low, outer_high


def _exchange(outgoing: Tensor, incoming: Tensor, partner: int, group: dist.ProcessGroup | None) -> None:
    """Send and receive at the same time; both sides know whether a half is empty."""
    works = []
    if outgoing.numel():
        works.append(dist.isend(outgoing, group=group, group_dst=partner))
    if incoming.numel():
        works.append(dist.irecv(incoming, group=group, group_src=partner))
    for work in works:
        assert work is not None
        work.wait()


def tree_all_reduce_nccl(buffer: Tensor, group: dist.ProcessGroup | None) -> None:
    """The same sum, bit for bit, by all-to-all, a tree sum of the pieces and all-gather: NCCL's fast collectives."""
    size = dist.get_world_size(group)
    assert size & (size - 1) == 0 and buffer.ndim == 1
    padded = torch.nn.functional.pad(buffer, (0, -buffer.numel() % size))
    pieces = torch.empty_like(padded)
    dist.all_to_all_single(pieces, padded, group=group)
    rows = pieces.view(size, -1)
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    dist.all_gather_into_tensor(padded, rows[0].contiguous(), group=group)
    buffer.copy_(padded[: buffer.numel()])


class GradientReducer:
    """Adds up a mini-batch's gradients: over this rank's micro-batches, then over the ranks.

    With several ranks `hook` is DDP's communication hook: each bucket is summed while the backward pass goes on. With one
    rank `finish_alone` does the local part.

    mode: see `choose_mode`. arrived: called when this rank's sums are computed and the wait for the other ranks begins.
    compression: bf16 halves the traffic and needs mode allreduce. It rounds each rank's sum and the sums of ranks to
    bfloat16, so the result depends on the number of ranks. A tree that rounds would have to round every addition within a
    rank too, and would lose digits where nothing travels.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        mode: Literal["tree", "allreduce"],
        device: torch.device,
        arrived: Callable[[], None] = lambda: None,
        compression: Literal["none", "bf16"] = "none",
    ) -> None:
        assert compression == "none" or mode == "allreduce"
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.index = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self.mode, self.device, self.arrived, self.compression = mode, device, arrived, compression
        self.accumulator = TreeAccumulator()
        self.group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            # A separate group: its collectives interleave with no others. Every rank makes it at the same place.
            self.group = cast(dist.ProcessGroup, dist.new_group())
            wait_for_all_ranks()
        # Buckets become ready in the same order on every rank; one thread keeps that order while backward goes on.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reduce")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def push_gradients(self) -> None:
        """Take the gradients of a micro-batch that is not the rank's last, and clear them."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "a parameter took no part in the loss"
            gradients.append(parameter.grad)
            parameter.grad = None
        self.accumulator.push(gradients)

    def finish_alone(self) -> None:
        """With one rank: add the pushed gradients to the last micro-batch's, in place."""
        for number, parameter in enumerate(self.parameters):
            assert parameter.grad is not None, "a parameter took no part in the loss"
            self.accumulator.add_last(number, parameter.grad)
        self.accumulator = TreeAccumulator()

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
        if bucket.is_last():
            self.arrived()
            self.accumulator = TreeAccumulator()
        if self.mode == "allreduce":
            # bfloat16 has float32's range: no scale is needed.
            sent = buffer.to(torch.bfloat16) if self.compression == "bf16" else buffer
            work = dist.all_reduce(sent, group=self.group, async_op=True)
            assert work is not None
            if sent is buffer:
                return work.get_future().then(lambda future: future.value()[0])
            return work.get_future().then(lambda future: buffer.copy_(future.value()[0]))
        if self._stream is not None:
            return self._reduce_on_stream(buffer, self._stream)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        self._thread.submit(self._reduce_in_thread, buffer, future)
        return future

    def _reduce_in_thread(self, buffer: Tensor, future: torch.futures.Future[Tensor]) -> None:
        try:
            tree_all_reduce(buffer, self.group)
            future.set_result(buffer)
        except Exception as error:
            future.set_exception(error)  # type: ignore[arg-type]

    def _reduce_on_stream(self, buffer: Tensor, stream: torch.cuda.Stream) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[self.device])
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            buffer.record_stream(stream)
            tree_all_reduce_nccl(buffer, self.group)
            future.set_result(buffer)
        return future

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
