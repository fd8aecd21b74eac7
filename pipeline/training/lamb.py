"""LAMB (You et al. 2020, arXiv 1904.00962) as timm has it, the optimizer of "ResNet strikes back". Update number t, from 1:

    g = g / max(1, |all gradients| / clip_norm)              # one norm over all parameters
    m = beta1 m + (1 - beta1) g                              # here on for each parameter tensor by itself
    v = beta2 v + (1 - beta2) g g
    u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    if weight_decay: u = u + weight_decay w;  u = u |w| / |u|   # the trust ratio; 1 where a norm is 0
    w = w - lr u

A tensor without weight decay gets no trust ratio, as in timm and NVIDIA's LAMB. All that changes from update to update
lies in tensors that keep their addresses, so that a CUDA graph can replay a step (replay.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB over `groups`, each with its `weight_decay`. All parameters take part in each step.

    factors: by group, of the learning rate. rates: by group, scalar tensors on the device, which `step` reads;
    `param_groups`, and so checkpoints, hold the numbers.
    found_inf: float32 [] on the device; where it is not 0, a step changes nothing, and the host does not wait to know it.
    updates: the steps that changed something, float64 [] on the device.
    """

    found_inf: Tensor

    def __init__(
        self,
        groups: list[dict[str, Any]],
        factors: Sequence[float],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        clip_norm: float,
    ) -> None:
        """clip_norm: the norm of all gradients together above which they are scaled down; 0 scales none."""
        groups = [{**group, "lr": lr * factor} for group, factor in zip(groups, factors, strict=True)]
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.eps, self.clip_norm = eps, clip_norm
        self.parameters: list[Tensor] = [parameter for group in self.param_groups for parameter in group["params"]]
        self._decays: list[float] = [group["weight_decay"] for group in self.param_groups for _ in group["params"]]
        for parameter in self.parameters:
            self.state[parameter] = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        first = self.parameters[0]
        self.factors = tuple(factors)
        self.rates = tuple(torch.full((), lr * factor, dtype=first.dtype, device=first.device) for factor in factors)
        self._betas = [torch.full((), beta, dtype=torch.float64, device=first.device) for beta in betas]
        self.found_inf = torch.zeros((), device=first.device)
        # float64: after some 20,000 updates 1 - beta2^t would lose digits in float32.
        self.updates = torch.zeros((), dtype=torch.float64, device=first.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one update. Where `found_inf` is set, every factor below is such that all tensors keep their bits."""
        assert closure is None
        weights = self.parameters
        dtype, takes = weights[0].dtype, self.found_inf == 0
        gradients = self._gradients(takes)
        first, second = ([self.state[weight][key] for weight in weights] for key in ("exp_avg", "exp_avg_sq"))
        for averages, beta, news in (
            (first, self._betas[0], gradients),
            (second, self._betas[1], torch._foreach_mul(gradients, gradients)),
        ):
            kept = torch.where(takes, beta, 1.0).to(dtype)
            torch._foreach_mul_(averages, kept)
            torch._foreach_add_(averages, torch._foreach_mul(news, (1 - beta).to(dtype)))
        count = self.updates + 1
        corrections = [(1 - beta**count).to(dtype) for beta in self._betas]
        steps = list(torch._foreach_div(first, corrections[0]))
        divisors = torch._foreach_sqrt(torch._foreach_div(second, corrections[1]))
        torch._foreach_add_(divisors, self.eps)
        torch._foreach_div_(steps, divisors)
        self._adapt(steps)
        rates = [torch.where(takes, rate, 0.0).to(dtype) for rate in self.rates]
        of_parameters = zip(rates, self.param_groups, strict=True)
        torch._foreach_mul_(steps, [rate for rate, group in of_parameters for _ in group["params"]])
        torch._foreach_sub_(weights, steps)
        self.updates += takes

    def _gradients(self, takes: Tensor) -> list[Tensor]:
        """The gradients, scaled down where their norm is above `clip_norm`; 0 where the update is skipped."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "a parameter took no part in the loss"
            gradients.append(torch.where(takes, parameter.grad, 0.0))
        if self.clip_norm:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_div_(gradients, (norm / self.clip_norm).clamp_(min=1.0))
        return gradients

    def _adapt(self, steps: list[Tensor]) -> None:
        """Add the weight decay to the steps and give them their trust ratios, in place."""
        chosen = [number for number, decay in enumerate(self._decays) if decay]
        if not chosen:
            return
        weights, adapted = [self.parameters[number] for number in chosen], [steps[number] for number in chosen]
        torch._foreach_add_(adapted, torch._foreach_mul(weights, [self._decays[number] for number in chosen]))
        lengths, of_steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, adapted))
        ratios = torch.where((lengths > 0) & (of_steps > 0), lengths / of_steps, 1.0)
        torch._foreach_mul_(adapted, list(ratios.unbind()))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.updates.copy_(state_dict["updates"])
