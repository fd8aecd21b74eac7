"""SGD with momentum as the paper ran it (section 3.4): Caffe's momentum, weight decay on every parameter. Or LAMB (lamb.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pipeline.base.command import UserError
from pipeline.training.lamb import Lamb

CLASSIFIER = "fc."  # the names of the classifier's parameters begin so, in every net here; all others are the body's


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD, or LAMB.

    Args:
        kind: sgd, as in the paper, or lamb, for large mini-batches ("ResNet strikes back"), which takes lr and weight_decay,
            and of the other keys those whose names begin with lamb.
        lr: base learning rate; 0.1 in the paper.
        body_lr_factor: the learning rate of all layers but the classifier is lr times this, at every update: 0.1 for
            fine-tuning, where the body is trained already; 0 leaves the body's weights as they are. 1 in the paper.
        momentum: 0.9 in the paper.
        weight_decay: 1e-4 in the paper.
        decay_norm_and_bias: whether weight decay also applies to BN's scales and shifts and to biases, as in the paper.
        caffe_momentum: whether a change of the learning rate rescales the momentum, as in Caffe's update (v = m v + lr g);
            false keeps PyTorch's behaviour.
        lamb_betas: decays, per update, of LAMB's moving averages of the gradients and of their squares.
        lamb_eps: what LAMB adds to the divisor of a step.
        lamb_clip_norm: length of the gradient of all weights together to which LAMB shortens a longer one; 0 shortens none.
    """

    kind: Literal["sgd", "lamb"] = "sgd"
    lr: float = 0.1
    body_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    caffe_momentum: bool = True
    lamb_betas: tuple[float, float] = (0.9, 0.999)  # these and the next two: timm's, timm/optim/lamb.py
    lamb_eps: float = 1e-6
    lamb_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr is {self.lr}: it must be above 0, such as 0.1")
        if not 0 <= self.body_lr_factor < math.inf:
            raise UserError(
                f"optimizer.body_lr_factor is {self.body_lr_factor}: it must be at least 0, such as 0.1; it multiplies "
                "optimizer.lr"
            )
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum is {self.momentum}: it must be at least 0 and less than 1")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"optimizer.weight_decay is {self.weight_decay}: it must be at least 0, such as 0.0001")
        if not all(0 <= beta < 1 for beta in self.lamb_betas):
            raise UserError(
                f"optimizer.lamb_betas is {list(self.lamb_betas)}: both must be at least 0 and less than 1, as [0.9, 0.999]"
            )
        if not 0 < self.lamb_eps < math.inf or not 0 <= self.lamb_clip_norm < math.inf:
            raise UserError(
                "optimizer.lamb_eps must be above 0, such as 1e-6, and optimizer.lamb_clip_norm at least 0, such as 1"
            )


class SGD(torch.optim.SGD):
    """torch's fused SGD, which reads the learning rates from tensors on the device.

    A recorded update (replay.py) keeps the numbers of its recording and reads tensors anew: one recording serves every rate.
    `param_groups`, and so checkpoints, hold the numbers.

    factors: by group, of the learning rate. rates: by group, scalar tensors, which `set_learning_rate` fills.
    """

    # float32 [] on the device, set before each step: where it is not 0, the step changes nothing.
    found_inf: torch.Tensor

    def __init__(self, groups: list[dict[str, Any]], factors: Sequence[float], lr: float, momentum: float) -> None:
        groups = [{**group, "lr": lr * factor} for group, factor in zip(groups, factors, strict=True)]
        # fused: one pass over memory, the same bits as foreach, and it skips an update without waiting for the device.
        super().__init__(groups, lr=lr, momentum=momentum, fused=True)
        device = groups[0]["params"][0].device
        # CUDA's kernel reads a float32. The CPU's takes the value itself, and gives the bits that the number would give.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.factors = tuple(factors)
        self.rates = tuple(torch.full((), lr * factor, dtype=dtype, device=device) for factor in factors)

    def step(self, closure: Any = None) -> Any:
        numbers = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            return super().step(closure)
        finally:
            for group, number in zip(self.param_groups, numbers, strict=True):
                group["lr"] = number


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> SGD | Lamb:
    groups: list[dict[str, Any]] = []
    factors: list[float] = []
    for parameters, factor in _parts(model, config.body_lr_factor):
        found = [group for group in _by_weight_decay(parameters, config) if group["params"]]
        groups += found
        factors += [factor] * len(found)
    if config.kind == "lamb":
        return Lamb(groups, factors, config.lr, config.lamb_betas, config.lamb_eps, config.lamb_clip_norm)
    optimizer = SGD(groups, factors, config.lr, config.momentum)
    if config.momentum:
        # Zeros change nothing (0.9 * 0 + g is the first update's g), and no buffer is missing after a skipped first update.
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _parts(model: nn.Module, body_factor: float) -> list[tuple[list[nn.Parameter], float]]:
    """(trained parameters, factor of their learning rate) of each part of the net that has a rate of its own.

    Without a rate of the body's own the net is one part, whose order is that of the checkpoints so far.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if body_factor == 1:
        return [([parameter for _, parameter in trained], 1.0)]
    body = [parameter for name, parameter in trained if not name.startswith(CLASSIFIER)]
    classifier = [parameter for name, parameter in trained if name.startswith(CLASSIFIER)]
    return [(body, body_factor), (classifier, 1.0)]


def _by_weight_decay(parameters: list[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    if config.decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    # Weights of convolutions and of the classifier have two dimensions or more; BN's parameters and biases have one.
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: SGD | Lamb, lr: float, config: OptimizerConfig) -> None:
    """Set `lr` for the next update, of the body its factor of it, without waiting for the device.

    Caffe keeps v = m v + lr g and does w -= v; PyTorch keeps b = m b + g and does w -= lr b, so v = lr b. After a change
    of lr, Caffe's v still holds the old rate's steps: b must become b lr_old / lr_new, which is the same for every factor.
    """
    for group, factor, rate in zip(optimizer.param_groups, optimizer.factors, optimizer.rates, strict=True):
        old, new = group["lr"], lr * factor
        if config.kind == "sgd" and config.caffe_momentum and new != old and old > 0 and new > 0:
            buffers = [state["momentum_buffer"] for p in group["params"] if (state := optimizer.state.get(p))]
            if buffers:
                torch._foreach_mul_(buffers, old / new)
        group["lr"] = new
        rate.fill_(new)
