"""All gradients in one buffer that keeps its address: what is summed over the ranks where DDP is not used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALIGNMENT = 4  # elements: kernels of the optimizer read four at once where they begin at 16 bytes


class FlatGradients:
    """The gradients of `parameters`, one after the other in `buffer`, each with its parameter's strides (channels_last).

    buffer: 1-d, of the parameters' dtype; its length is a multiple of `ranks`, and what lies between gradients is 0.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: int) -> None:
        """All parameters must have one dtype and lie on one device."""
        self.parameters = parameters
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self.buffer = torch.zeros(-(-end // ranks) * ranks, dtype=parameters[0].dtype, device=parameters[0].device)
        self._views: list[Tensor] = []
        for parameter, start in zip(parameters, starts, strict=True):
            assert parameter.dtype == self.buffer.dtype
            self._views.append(self.buffer.as_strided(parameter.shape, parameter.stride(), start))

    @torch.no_grad()
    def broadcast_parameters(self) -> None:
        """Give every rank the parameters of rank 0, as DDP does: initial weights may differ between kinds of CPU.

        A collective: every rank calls it.
        """
        values = [parameter.detach() for parameter in self.parameters]
        torch._foreach_copy_(self._views, values)
        dist.broadcast(self.buffer, src=0)
        torch._foreach_copy_(values, self._views)
        self.buffer.zero_()

    def take(self) -> None:
        """Move the gradients into the buffer; each parameter's `grad` is then its place there."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "a parameter took no part in the loss"
            gradients.append(parameter.grad)
        torch._foreach_copy_(self._views, gradients)
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view
