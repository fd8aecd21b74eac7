"""Normalization groups (contract 4): BN statistics over the recipe's group of images, whatever the cluster.

A mini-batch is cut into groups of `bn_group` consecutive rows. A rank with several groups computes one after the other;
ranks that a group spans share its statistics (`synced_batchnorm`).

Each group keeps running statistics, and evaluation uses their plain average. A moving average is linear, so this equals
averaging the groups' statistics at every iteration, without communication between the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.base.command import UserError
from pipeline.process.world import gather_from_ranks


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """How the rows of a mini-batch are divided among ranks and normalization groups.

    rows: those of this rank, a half-open range of the mini-batch's. micro_batch: rows of one forward pass.
    groups: in the whole mini-batch. ranks_per_group: 1 where a rank holds whole groups.
    """

    rows: slice
    micro_batch: int
    groups: int
    ranks_per_group: int

    @property
    def local(self) -> int:
        """Forward passes of this rank in one update."""
        return (self.rows.stop - self.rows.start) // self.micro_batch


def plan_groups(batch: int, bn_group: int | Literal["rank"], rank: int, size: int) -> GroupPlan:
    """Divide `batch` rows among `size` ranks. Raises UserError where the rows or the groups do not come out even."""
    if batch % size:
        near = [n for n in range(1, batch + 1) if batch % n == 0 and n <= 2 * size]
        raise UserError(
            f"batch {batch} is not divided by {size} processes: use one of {near} processes, or another batch"
        )
    share = batch // size
    group = share if bn_group == "rank" else bn_group
    if share % group and group % share:
        raise UserError(
            f"each of {size} processes gets {share} rows of the batch, which neither holds whole normalization groups of "
            f"{group} rows nor divides one: choose the number of processes or bn_group so that one divides the other"
        )
    return GroupPlan(
        rows=slice(rank * share, (rank + 1) * share),
        micro_batch=min(share, group),
        groups=batch // group,
        ranks_per_group=max(1, group // share),
    )


def freeze_normalization(model: nn.Module) -> None:
    """Let every BN layer go on as it is, in training too: its running statistics normalize, and nothing of it changes.

    Its scale and shift are not trained either, and get no weight decay: the layer is one fixed linear map, as torchvision's
    FrozenBatchNorm2d is.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


class GroupStatistics:
    """The running statistics of this rank's groups, and their average over all groups.

    `rows` float32 [local groups, C], on the device; C runs over the mean and variance of every module. Outside the blocks of
    `group` the content of the modules' buffers has no meaning. frozen: training leaves the statistics as they are
    (`freeze_normalization`).
    """

    def __init__(self, model: nn.Module, plan: GroupPlan, frozen: bool = False) -> None:
        self.plan, self.frozen = plan, frozen
        self.modules = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.buffers: list[Tensor] = []
        for module in self.modules:
            assert module.running_mean is not None and module.running_var is not None
            self.buffers += [module.running_mean, module.running_var]
        self.rows = torch.cat(self.buffers).repeat(plan.local, 1)
        self._fresh: list[Tensor] = []

    @contextmanager
    def group(self, number: int) -> Iterator[None]:
        """Inside the block the modules' running statistics are those of this rank's group `number`."""
        self._scatter(self.rows[number])
        yield
        self._fresh.append(torch.cat(self.buffers))

    def commit(self, finite: Tensor) -> None:
        """Keep what the blocks of `group` since the last call left; where `finite` (bool []) is false, drop it."""
        self.rows.copy_(torch.where(finite, torch.stack(self._fresh), self.rows))
        self._fresh.clear()

    def all_groups(self) -> Tensor:
        """float32 [groups, C], on the host, the same on every rank. A collective: every rank calls it."""
        return self._gather(self.rows)

    @torch.no_grad()
    def observe(self, network: nn.Module, images: Tensor) -> Tensor:
        """float32 [groups, C] as in `all_groups`: the statistics of these images' groups alone, not a moving average.

        images [N, 3, H, W]: this rank's rows of a mini-batch. `rows` stays as it is. A collective: every rank calls it.
        """
        momenta = [module.momentum for module in self.modules]
        for module in self.modules:
            module.momentum = 1.0
        rows = []
        for rows_of_group in images.split(self.plan.micro_batch):
            network(rows_of_group)
            rows.append(torch.cat(self.buffers))
        for module, momentum in zip(self.modules, momenta, strict=True):
            module.momentum = momentum
        return self._gather(torch.stack(rows))

    def _gather(self, rows: Tensor) -> Tensor:
        return torch.cat(gather_from_ranks(rows.cpu())[:: self.plan.ranks_per_group])

    def load_all_groups(self, statistics: Tensor) -> None:
        """Restore what `all_groups` returned, on any number of ranks.

        With `bn_group: rank` another number of ranks makes another number of groups: each then starts from the average.
        """
        if len(statistics) != self.plan.groups:
            statistics = self._average(statistics).expand(self.plan.groups, -1)
        rows_per_group = self.plan.micro_batch * self.plan.ranks_per_group
        first = self.plan.rows.start // rows_per_group
        self.rows.copy_(statistics[first : first + self.plan.local])

    def average_into_model(self, statistics: Tensor, iterations: int) -> None:
        """Set the modules' running statistics to the plain average over groups, for evaluation and saving."""
        self._scatter(self._average(statistics))
        for module in self.modules:
            assert module.num_batches_tracked is not None
            # Updates, not forward passes: the number of these depends on the number of ranks.
            module.num_batches_tracked.fill_(iterations)

    def gather_into_model(self, iterations: int) -> Tensor:
        """`average_into_model` of `all_groups()`, which it returns. A collective: every rank calls it."""
        statistics = self.all_groups()
        self.average_into_model(statistics, iterations)
        return statistics

    def _average(self, statistics: Tensor) -> Tensor:
        """[C], of [groups, C]. Frozen rows are equal: the mean of 3 or 8 equal numbers may be another one in its last bit."""
        return statistics[0] if self.frozen else statistics.mean(dim=0)

    def _scatter(self, values: Tensor) -> None:
        pieces = values.to(self.rows.device).split([buffer.numel() for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, pieces)
