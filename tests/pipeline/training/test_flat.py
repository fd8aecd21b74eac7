"""Gradients in one buffer: their values, signs of zero and strides stay, and every rank starts from rank 0's weights."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.process.world import World
from pipeline.training.flat import ALIGNMENT, FlatGradients
from tests.ranks import run_ranks


def parameters(seed: int) -> list[nn.Parameter]:
    """Of sizes that no alignment divides, in the memory formats of convolutions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3, 3, 3), (7,), (4, 6, 1, 1), (10, 3)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(value.to(memory_format=torch.channels_last) if value.ndim == 4 else value) for value in values]


def test_gradients_move_unchanged() -> None:
    own = parameters(0)
    flat = FlatGradients(own, ranks=8)
    assert len(flat.buffer) % 8 == 0
    for number in range(2):  # the second time into the same places
        gradients = [value.detach() * -0.0 if value.ndim == 1 else value.detach() + number for value in own]
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient.clone()
        flat.take()
        for parameter, gradient in zip(own, gradients, strict=True):
            assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
            assert torch.equal(parameter.grad, gradient)
            assert torch.equal(parameter.grad.signbit(), gradient.signbit())
            place = (parameter.grad.data_ptr() - flat.buffer.data_ptr()) // parameter.element_size()
            assert 0 <= place < len(flat.buffer) and place % ALIGNMENT == 0
    assert sum(parameter.numel() for parameter in own) == flat.buffer.count_nonzero() + 7, "only -0.0 and gaps are 0"


def of_rank_0(world: World) -> tuple[bool, float]:
    own, expected = parameters(world.rank), parameters(0)
    flat = FlatGradients(own, world.size)
    flat.broadcast_parameters()
    return all(map(torch.equal, own, expected)), float(flat.buffer.abs().sum())


def test_every_rank_starts_from_the_weights_of_rank_0() -> None:
    assert run_ranks(2, of_rank_0) == [(True, 0.0)] * 2
