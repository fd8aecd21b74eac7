"""Parameters and multiply-adds of a net, counted as in Table 1 of the paper."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Complexity:
    parameters: int  # batch normalization's gamma and beta included, its running statistics not
    multiply_adds: int  # of convolutions (projections included) and fc, for one image


def count(net: nn.Module, image_size: int) -> Complexity:
    """The complexity of `net` for one image [3, image_size, image_size].

    A copy runs on the meta device; `net` itself, on any device and in either mode, is neither run nor changed.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, 3, image_size, image_size, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0, flops  # torch counts a multiply-add as two operations
    return Complexity(parameters=sum(p.numel() for p in net.parameters()), multiply_adds=flops // 2)
