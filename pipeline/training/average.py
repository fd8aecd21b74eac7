"""The exponential moving average of the weights (EMA): a second net, kept beside the one that is trained.

torch.optim.swa_utils.AveragedModel keeps its count on the device and asks for it at every update, which would wait for
a GPU, and it cannot leave out an update; so the few lines of arithmetic stand here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.training.batchnorm import GroupStatistics


class WeightAverage:
    """average := d average + (1 - d) weights after update t = 0, 1 ..., with d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first updates lets go of the initial weights (TensorFlow's ExponentialMovingAverage with
    num_updates). BN running statistics are averaged alike, in every normalization group: all of it is linear, so the
    average over groups of these averages is the average of what evaluation would have used.

    model: the averaged net, in eval mode; its buffers hold what `statistics.average_into_model` set last.
    updates: seen so far, skipped ones too, as for the schedule; who calls `update` counts them.
    """

    def __init__(self, copy: nn.Module, model: nn.Module, statistics: GroupStatistics, decay: float) -> None:
        """`copy`: a net of its own, equal to `model`, on the same device."""
        assert 0 < decay < 1
        self.model, self.decay, self.updates = copy.eval().requires_grad_(False), decay, 0
        self.statistics = GroupStatistics(copy, statistics.plan)
        self._averages: list[Tensor] = list(copy.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._observed = statistics

    @property
    def current_decay(self) -> float:
        """d of the update that comes next."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Take in the weights as they are; leave the average as it is where `finite` (bool [], on the device) is false."""
        share = finite.to(self._averages[0].dtype) * (1 - self.current_decay)
        # torch._foreach_lerp_ takes one share from the host, and asking the device whether it is 0 would wait for it.
        differences = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(self._averages, differences)
        self.statistics.rows += (self._observed.rows - self.statistics.rows) * share
