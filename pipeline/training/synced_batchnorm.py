"""Batch normalization over a group of ranks, on any backend: torch's own SyncBatchNorm runs on GPUs only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share_normalization(model: nn.Module, ranks_per_group: int, rank: int, size: int) -> None:
    """Make every BN module take its statistics over `ranks_per_group` consecutive ranks. A collective.

    The modules keep their parameters, buffers and names.
    """
    group = None
    for first in range(0, size, ranks_per_group):  # every rank takes part in making every group
        members = list(range(first, first + ranks_per_group))
        made = dist.new_group(members)
        if rank in members:
            group = made
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
            module.group = group  # type: ignore[assignment]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are over the rows of all ranks of `group` (equal counts on each)."""

    group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _SharedNormalization.apply(input, self.weight, self.bias, self.eps, self.group)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # unbiased, as torch keeps it
        return output


class _SharedNormalization(torch.autograd.Function):
    """Forward and backward of batch normalization (Ioffe and Szegedy 2015) with the sums taken over a process group."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup) -> Any:
        values = input.to(weight.dtype if input.dtype in (torch.float16, torch.bfloat16) else input.dtype)
        ranks = dist.get_world_size(group)
        count = values.numel() // values.shape[1] * ranks
        # Two passes, mean first: the one-pass formula loses digits where the mean is large against the deviation.
        mean = values.sum(dim=(0, 2, 3))
        dist.all_reduce(mean, group=group)
        mean = mean / count
        centred = values - _spread(mean)
        variance = centred.square().sum(dim=(0, 2, 3))
        dist.all_reduce(variance, group=group)
        variance = variance / count
        inverse = torch.rsqrt(variance + eps)
        normalized = centred * _spread(inverse)
        ctx.save_for_backward(normalized, weight, inverse)
        ctx.group, ctx.count = group, count
        ctx.mark_non_differentiable(mean, variance)
        output = normalized * _spread(weight) + _spread(bias)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        normalized, weight, inverse = ctx.saved_tensors
        gradient = gradients[0].to(normalized.dtype)
        bias_gradient = gradient.sum(dim=(0, 2, 3))
        weight_gradient = (gradient * normalized).sum(dim=(0, 2, 3))
        sums = torch.stack([bias_gradient, weight_gradient])
        dist.all_reduce(sums, group=ctx.group)
        mean_gradient, mean_product = sums / ctx.count
        centred = gradient - _spread(mean_gradient) - normalized * _spread(mean_product)
        input_gradient = centred * _spread(weight * inverse)
        # The parameters' gradients stay local sums: the gradient reduction adds them over the ranks.
        return input_gradient.to(gradients[0].dtype), weight_gradient, bias_gradient, None, None


def _spread(channel_values: Tensor) -> Tensor:
    return channel_values.view(1, -1, 1, 1)
