"""Sums in one fixed binary tree, whatever the number of ranks (contract 4).

The leaves are the gradients of the mini-batch's micro-batches in row order. Within a rank they are added as a binary
counter counts: two sums of equal level make one of the next level. Across ranks they are added by recursive halving and
doubling, whose partners at distance 1, 2, 4 ... are the next levels of the same tree, or by collectives that add the same
pairs. Floating-point addition commutes, so every rank, and every power-of-two number of ranks, gets the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.process.world import World, gather_from_ranks, wait_for_all_ranks


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


def tree_all_reduce_nccl(buffer: Tensor, levels: Sequence[dist.ProcessGroup]) -> None:
    """The same sum, bit for bit, by NCCL's fast collectives, one level after the other: see `tree_levels`.

    At each level an all-to-all hands every rank its piece of what the level's ranks hold, and the rank adds these up in
    tree order; all-gathers bring the pieces back. With W ranks, L of them on a node, and B bytes, a rank sends
    2 B (L-1)/L inside its node and 2 B/L (N-1)/N to the other N = W/L nodes; one level alone would send 2 B (W-L)/W there,
    L times as much, in messages of B/W to W-L ranks instead of N-1. Calculated for DDP's buckets of 26 MB on 8 nodes of
    8: 3.3 MB to each of 7 ranks inside, then 410 KB to each of 7 outside instead of 410 KB to each of 56. The messages
    between the nodes shrink with the number of ranks: 51 KB to each of 63 at 64 nodes.
    """
    size = 1
    for group in levels:
        size *= dist.get_world_size(group)
    assert size & (size - 1) == 0 and buffer.ndim == 1
    missing = -buffer.numel() % size
    held = [torch.nn.functional.pad(buffer, (0, missing)) if missing else buffer]
    for group in levels:
        held.append(_scattered_sum(held[-1], group))
    for group, whole, piece in reversed(list(zip(levels, held[:-1], held[1:], strict=True))):
        dist.all_gather_into_tensor(whole, piece, group=group)
    if missing:
        buffer.copy_(held[0][: buffer.numel()])


def _scattered_sum(buffer: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's piece, the one of its number, of the tree sum of `buffer` over the ranks of `group`."""
    pieces = torch.empty_like(buffer)
    dist.all_to_all_single(pieces, buffer, group=group)
    rows = pieces.view(dist.get_world_size(group), -1)
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    return rows[0]


def tree_levels(world: World) -> list[dist.ProcessGroup]:
    """The groups that make up the world for `tree_all_reduce_nccl`: this rank's, of each level, the lowest first.

    They are the ranks of a node and then one rank of every node, where `ranks_per_node` allows it, else all ranks at once.
    A collective: every rank calls it at the same place.
    """
    here = torch.tensor([world.local_rank, world.local_size])
    places = [(int(rank), int(size)) for rank, size in gather_from_ranks(here)]
    if local := ranks_per_node(places):
        inside, _ = dist.new_subgroups(local)
        across, _ = dist.new_subgroups_by_enumeration([list(range(first, world.size, local)) for first in range(local)])
        levels = [inside, across]
    else:
        levels = [dist.new_group()]
    wait_for_all_ranks()
    return cast(list[dist.ProcessGroup], levels)


def ranks_per_node(places: Sequence[tuple[int, int]]) -> int | None:
    """How many consecutive ranks share a node, where that makes two levels of the tree; else None.

    places: (local rank, local size) of every rank. Nodes must hold equal powers of two of neighbouring ranks, and be
    several with several ranks each.
    """
    local = places[0][1]
    even = all(place == (rank % local, local) for rank, place in enumerate(places))
    return local if even and local & (local - 1) == 0 and 1 < local < len(places) else None
