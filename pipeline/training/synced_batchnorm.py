"""Batch normalization over a group of ranks, on any backend: torch's SyncBatchNorm runs on GPUs only.

The collectives are torch's functional ones, which torch.compile takes into the net's one graph. That graph is the same on
every rank, and so is the order of its collectives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.process.world import wait_for_all_ranks


def share_normalization(model: nn.Module, ranks_per_group: int) -> None:
    """Make every BN module compute its statistics over `ranks_per_group` consecutive ranks.

    The modules keep their parameters, buffers and names. A collective: every rank calls it.
    """
    group, _ = dist.new_subgroups(ranks_per_group)
    wait_for_all_ranks()
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
            # Its name: a graph of torch.compile can hold a name, but no process group.
            module.group, module.ranks = group.group_name, ranks_per_group  # type: ignore[assignment]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are over the rows of all ranks of `group` (equal counts on each).

    group: the process group's name; it has `ranks` ranks.
    """

    group: str
    ranks: int

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance = _SharedNormalization.apply(
            input, self.weight, self.bias, self.eps, self.group, self.ranks
        )
        count = input.numel() // input.shape[1] * self.ranks
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # unbiased, as torch keeps it
        return output


class _SharedNormalization(torch.autograd.Function):
    """Forward and backward of batch normalization (Ioffe and Szegedy 2015) with the statistics of a process group."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str, ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = input.to(weight.dtype if input.dtype in (torch.float16, torch.bfloat16) else input.dtype)
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        # Every rank's mean and variance travel together; the group's follow from them exactly. They would from sums of
        # values and of squares too, but with fewer digits where the mean is large against the deviation.
        functional = torch.ops._c10d_functional
        gathered = functional.all_gather_into_tensor(torch.stack([mean, variance]), ranks, group)
        means, variances = functional.wait_tensor(gathered).view(ranks, 2, -1).unbind(1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        inverse = torch.rsqrt(variance + eps)
        normalized = (values - _spread(mean)) * _spread(inverse)
        ctx.save_for_backward(normalized, weight, inverse)
        ctx.group, ctx.count = group, values.numel() // values.shape[1] * ranks
        ctx.mark_non_differentiable(mean, variance)
        output = normalized * _spread(weight) + _spread(bias)
        return output.to(input.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        normalized, weight, inverse = ctx.saved_tensors
        gradient = gradients[0].to(normalized.dtype)
        bias_gradient = gradient.sum(dim=(0, 2, 3))
        weight_gradient = (gradient * normalized).sum(dim=(0, 2, 3))
        functional = torch.ops._c10d_functional
        sums = functional.all_reduce(torch.stack([bias_gradient, weight_gradient]), "sum", ctx.group)
        mean_gradient, mean_product = (functional.wait_tensor(sums) / ctx.count).unbind(0)
        centred = gradient - _spread(mean_gradient) - normalized * _spread(mean_product)
        input_gradient = centred * _spread(weight * inverse)
        # The gradients of the parameters stay this rank's sums: the gradient reduction adds up the ranks.
        return input_gradient.to(gradients[0].dtype), weight_gradient, bias_gradient, None, None, None


def _spread(channel_values: Tensor) -> Tensor:
    return channel_values.view(1, -1, 1, 1)
