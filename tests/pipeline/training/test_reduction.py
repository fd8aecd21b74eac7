"""The binary tree: against an explicit NumPy tree, bit for bit, for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.command import UserError
from pipeline.process.world import World
from pipeline.training.reduction import GradientReducer, TreeAccumulator, choose_mode, tree_all_reduce
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


def reduce_share(world: World) -> np.ndarray:
    share = LEAVES // world.size
    mine = torch.from_numpy(leaves()[world.rank * share : (world.rank + 1) * share]).clone()
    accumulator = TreeAccumulator()
    for row in mine[:-1]:
        accumulator.push([row])
    total = mine[-1]
    accumulator.add_last(0, total)
    if world.size > 1:
        tree_all_reduce(total, None)
    return total.numpy()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_world_size_gives_the_bits_of_the_tree(size: int) -> None:
    expected = numpy_tree(leaves())
    assert not np.array_equal(expected, leaves().sum(axis=0)), "the inputs must tell orders of summing apart"
    for result in run_ranks(size, reduce_share):
        np.testing.assert_array_equal(result, expected)


def compressed_gradient(world: World) -> tuple[np.ndarray, bool]:
    """The sum over ranks of a weight's gradient, one row of `leaves` each, and whether it is float32."""
    net = torch.nn.Linear(LENGTH, 1)
    reducer = GradientReducer(list(net.parameters()), "allreduce", world.device, compression="bf16")
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
