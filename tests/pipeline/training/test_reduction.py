"""The sums of gradients: the binary tree against an explicit NumPy tree, bit for bit, for any number of ranks and nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.command import UserError
from pipeline.process.world import World
from pipeline.training.reduction import GradientReducer, choose_mode
from pipeline.training.tree import (
    TreeAccumulator,
    ranks_per_node,
    tree_all_reduce,
    tree_all_reduce_nccl,
    tree_levels,
)
from tests.ranks import run_ranks

LEAVES, LENGTH = 8, 1003  # odd, so that halves are uneven


def leaves() -> np.ndarray:
    """Numbers of very different size: any other order of summing gives other bits."""
    generator = np.random.default_rng(0)
    return (generator.standard_normal((LEAVES, LENGTH)) * 10.0 ** generator.integers(-6, 6, (LEAVES, LENGTH))).astype(
        "f4"
    )


def numpy_tree(rows: np.ndarray) -> np.ndarray:
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    return rows[0]


def sum_of_share(world: World) -> torch.Tensor:
    """The rank's own part of the sum."""
    share = LEAVES // world.size
    mine = torch.from_numpy(leaves()[world.rank * share : (world.rank + 1) * share]).clone()
    accumulator = TreeAccumulator()
    for row in mine[:-1]:
        accumulator.push([row])
    total = mine[-1]
    accumulator.add_last(0, total)
    return total


def reduce_share(world: World) -> np.ndarray:
    total = sum_of_share(world)
    if world.size > 1:
        tree_all_reduce(total, None)
    return total.numpy()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_world_size_gives_the_bits_of_the_tree(size: int) -> None:
    expected = numpy_tree(leaves())
    assert not np.array_equal(expected, leaves().sum(axis=0)), "the inputs must tell orders of summing apart"
    for result in run_ranks(size, reduce_share):
        np.testing.assert_array_equal(result, expected)


def reduce_in_levels(world: World, per_node: list[int]) -> list[tuple[list[int], list[np.ndarray]]]:
    """(ranks of each level, sums) as if so many ranks shared a node: with and without a rest in the division by the ranks."""
    results = []
    for local in per_node:
        levels = tree_levels(replace(world, local_rank=world.rank % local, local_size=local))
        sums = []
        for length in (LENGTH, LENGTH // world.size * world.size):
            total = sum_of_share(world)[:length].clone()
            tree_all_reduce_nccl(total, levels)
            sums.append(total.numpy())
        results.append(([group.size() for group in levels], sums))
    return results


@pytest.mark.parametrize("size", [4, 8])
def test_the_levels_of_nodes_give_the_bits_of_the_tree(size: int) -> None:
    """The collectives of NCCL's path, carried by gloo, on every division of the ranks among nodes."""
    per_node = [local for local in (1, 2, 4, 8) if local <= size]
    expected = numpy_tree(leaves())
    for results in run_ranks(size, reduce_in_levels, per_node):
        for local, (levels, sums) in zip(per_node, results, strict=True):
            assert levels == ([local, size // local] if 1 < local < size else [size])
            for total in sums:
                np.testing.assert_array_equal(total, expected[: len(total)])


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(0, 2), (1, 2), (0, 2), (1, 2)], 2),
        ([(0, 4), (1, 4), (2, 4), (3, 4)], None),  # one node
        ([(0, 1), (0, 1), (0, 1), (0, 1)], None),  # nodes of one rank
        ([(0, 2), (0, 2), (1, 2), (1, 2)], None),  # neighbours on different nodes
        ([(0, 3), (1, 3), (2, 3), (0, 1)], None),  # uneven nodes
        ([(0, 1), (0, 3), (1, 3), (2, 3)], None),
        ([(rank % 3, 3) for rank in range(6)], None),  # no power of two
    ],
)
def test_nodes_make_a_level_where_they_are_even(places: list[tuple[int, int]], expected: int | None) -> None:
    assert ranks_per_node(places) == expected


def compressed_gradient(world: World) -> tuple[np.ndarray, bool]:
    """The sum over ranks of a weight's gradient, one row of `leaves` each, and whether it is float32."""
    net = torch.nn.Linear(LENGTH, 1)
    reducer = GradientReducer(list(net.parameters()), "allreduce", world, compression="bf16")
    network = DistributedDataParallel(net, gradient_as_bucket_view=True)
    network.register_comm_hook(None, reducer.hook)
    network(torch.from_numpy(leaves()[world.rank])[None]).sum().backward()
    reducer.close()
    gradient = net.weight.grad
    assert gradient is not None
    return gradient[0].numpy(), gradient.dtype == torch.float32


def test_compression_rounds_what_travels() -> None:
    """Reference on two ranks: each rank's gradient rounded to bfloat16, and their sum rounded."""
    rows = torch.from_numpy(leaves()[:2]).bfloat16()
    expected = (rows[0] + rows[1]).float().numpy()
    for result, is_float32 in run_ranks(2, compressed_gradient):
        assert is_float32
        np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(expected, leaves()[0] + leaves()[1])


def test_choice_of_mode() -> None:
    assert choose_mode("auto", 4, 2) == "tree"
    assert choose_mode("auto", 3, 2) == "allreduce"
    assert choose_mode("auto", 2, 3) == "allreduce"
    assert choose_mode("allreduce", 4, 2) == "allreduce"
    assert choose_mode("auto", 4, 2, "bf16") == "allreduce"
    with pytest.raises(UserError, match="reduction tree promises"):
        choose_mode("tree", 4, 2, "bf16")
    with pytest.raises(UserError, match="3 ranks"):
        choose_mode("tree", 3, 2)
