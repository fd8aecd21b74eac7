"""The exponential moving average of the weights (EMA): a second net, kept beside the one that is trained.

torch.optim.swa_utils.AveragedModel fetches its count from the device at every update, which would wait for a GPU, and it
cannot skip an update. So the few lines of arithmetic stand here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.training.batchnorm import GroupStatistics


class WeightAverage:
    """average := d average + (1 - d) weights after update t = 0, 1 ..., with d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first updates forgets the initial weights soon (TensorFlow's ExponentialMovingAverage with
    num_updates). BN running statistics are averaged in the same way, in every normalization group: both averages are
    linear, so the mean of these statistics over the groups is the average of those that evaluation would have used.

    model: the averaged net, in eval mode; `statistics.average_into_model` sets its buffers.
    updates: updates so far, skipped ones included, as the schedule counts them. The caller of `update` increments it.
    For each update, call `set_decay` and then `update`, which can be recorded and replayed.
    """

    def __init__(self, copy: nn.Module, model: nn.Module, statistics: GroupStatistics, decay: float) -> None:
        """copy: a copy of `model`, on the same device, which becomes the average."""
        assert 0 < decay < 1
        self.model, self.decay, self.updates = copy.eval().requires_grad_(False), decay, 0
        self.statistics = GroupStatistics(copy, statistics.plan, statistics.frozen)
        self._averages: list[Tensor] = list(copy.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._observed = statistics
        # On the device, so that a recorded `update` reads it anew.
        self._share = torch.zeros((), dtype=self._weights[0].dtype, device=self._weights[0].device)

    def set_decay(self) -> None:
        """Set d of the next update, without waiting for the device."""
        self._share.fill_(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Add the present weights to the average; where `finite` (bool [], on the device) is false, change nothing."""
        share = finite.to(self._share.dtype) * self._share
        # torch._foreach_lerp_ takes its share from the host, and fetching `finite` would wait for the device.
        differences = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(self._averages, differences)
        self.statistics.rows += (self._observed.rows - self.statistics.rows) * share
