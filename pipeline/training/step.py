"""One update (paper section 3.4): the mini-batch in its normalization groups, gradients summed, SGD.

Nothing here waits for the device: losses and errors stay on it until `take_metrics` is called at a log point.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.process.world import World
from pipeline.training.average import WeightAverage
from pipeline.training.batchnorm import GroupPlan, GroupStatistics
from pipeline.training.compiling import compile_for_training, eager
from pipeline.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rate
from pipeline.training.reduction import GradientReducer, choose_mode
from pipeline.training.replay import Recorder, ReplayedUpdate
from pipeline.training.synced_batchnorm import share_normalization


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What an update depends on beside the model and the ranks; a run's config derives it (`Config.step`).

    batch: images of the whole mini-batch. compile_crop: side of the training images in pixels where the net is to be
    compiled for them. The other fields are the config's keys of the same names.
    """

    batch: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reduction: Literal["auto", "tree", "allreduce"] = "auto"
    gradient_compression: Literal["none", "bf16"] = "none"
    precision: Literal["float32", "bf16"] = "float32"
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    compile_crop: int | None = None


class TrainingStep:
    """The model in training: `step(images, labels, lr)` makes one update on this rank's rows of the mini-batch.

    average: the moving average of the weights, None without one (`ema_decay` 0). not_compiled: the reason why the net
    that was to be compiled is not.
    """

    def __init__(
        self, model: nn.Module, config: StepConfig, plan: GroupPlan, world: World, recorder: Recorder | None = None
    ) -> None:
        """recorder: records an update and replays it as a whole; for a world of one rank.

        Raises UserError where the ranks cannot use the reduction that the config asks for.
        """
        assert recorder is None or world.size == 1
        self.config, self.plan, self.world = config, plan, world
        mode = choose_mode(config.reduction, world.size, plan.local, config.gradient_compression)
        model = model.to(world.device).to(memory_format=torch.channels_last).train()
        average = copy.deepcopy(model) if config.ema_decay else None  # before its BN modules belong to process groups
        if plan.ranks_per_group > 1:
            share_normalization(model, plan.ranks_per_group, world.rank, world.size)
        self.model = model
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.not_compiled: str | None = None
        if config.compile_crop is not None:
            example = torch.Size((plan.micro_batch, 3, config.compile_crop, config.compile_crop))
            spans = plan.ranks_per_group > 1
            self.not_compiled = compile_for_training(self.model, example, config.precision, world, meets_others=spans)
        self.statistics = GroupStatistics(self.model, plan)
        self.average = WeightAverage(average, self.model, self.statistics, config.ema_decay) if average else None
        self.reducer = GradientReducer(
            list(self.model.parameters()),
            mode,
            world.device,
            lambda: world.watchdog.note("gradient reduction"),
            config.gradient_compression,
        )
        self.network: nn.Module = self.model
        if world.size > 1:
            # Every group keeps its own statistics; torch renamed the switch in 2.15 and warns of the old name.
            parameters = inspect.signature(DistributedDataParallel).parameters
            switch = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Under no_sync, which several micro-batches need, torch 2.15 fails with an internal assertion of its own.
                static_graph=plan.local == 1,
                **{switch: False},  # type: ignore[arg-type]
            )
            self.network.register_comm_hook(None, self.reducer.hook)
        self._replayed = ReplayedUpdate(self._update, recorder) if recorder else None
        self._metrics: list[Tensor] = []  # one [local micro-batches, 3] per iteration: see `take_metrics`

    def step(self, images: Tensor, labels: Tensor, lr: float) -> None:
        """One update. `images` float32 [N, H, W, 3] normalised, `labels` int64 [N]: this rank's rows of the mini-batch."""
        set_learning_rate(self.optimizer, lr, self.config.optimizer)
        if self._replayed:
            decided = (lr, self.average.current_decay if self.average else None)
            self._metrics.append(self._replayed(images, labels, decided))
        else:
            self._metrics.append(self._update(images, labels))
        if self.average:
            self.average.updates += 1

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        """The update at the optimizer's learning rate; its metrics, as one element of `_metrics`.

        What it leaves behind, it leaves where it was in memory: a CUDA graph reads and writes the same places each time.
        """
        self.optimizer.zero_grad(set_to_none=True)
        size = self.plan.micro_batch
        metrics = torch.empty(self.plan.local, 3, dtype=torch.float64, device=self.world.device)
        for number in range(self.plan.local):
            rows = slice(number * size, (number + 1) * size)
            last = number == self.plan.local - 1
            with self.statistics.group(number):
                metrics[number, :2] = self._micro_batch(images[rows], labels[rows], travels=last)
            if not last:
                self.reducer.push_gradients()
        if self.network is self.model:
            self.reducer.finish_alone()
        # The same on every rank: the gradients are summed by now. Nobody waits for the answer: the optimizer reads it on
        # the device, and an update that would poison the weights leaves everything as it is.
        gradients = [parameter.grad for parameter in self.reducer.parameters if parameter.grad is not None]
        finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
        self.statistics.commit(finite)
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average:
            self.average.update(finite)
        metrics[:, 2] = finite
        return metrics

    def _micro_batch(self, images: Tensor, labels: Tensor, *, travels: bool) -> Tensor:
        """Forward and backward of one micro-batch; [2]: its share of the loss, its wrong predictions."""
        waits = isinstance(self.network, DistributedDataParallel) and not travels
        with self.network.no_sync() if waits else nullcontext():  # type: ignore[operator]
            # NHWC in memory seen as NCHW is channels_last: no copy.
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                logits = self.network(images.permute(0, 3, 1, 2))
                # bf16 has 8 bits: the softmax and its loss are float32 (float64 stays, for tests).
                logits = logits.float() if logits.dtype == torch.bfloat16 else logits
                smoothing = self.config.label_smoothing
                loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) / self.config.batch
            loss.backward()
        with torch.no_grad():
            if smoothing:  # reported is the cross-entropy with the labels themselves: it compares with other recipes'
                loss = F.cross_entropy(logits, labels, reduction="sum") / self.config.batch
            return torch.stack([loss.detach(), (logits.argmax(dim=1) != labels).sum().to(loss.dtype)])

    def batch_statistics(self, images: Tensor) -> Tensor:
        """float32 [groups, C]: BN statistics of one mini-batch's groups; `images` as in `step`. A collective."""
        with eager(), torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.statistics.observe(self.model, images.permute(0, 3, 1, 2))

    def recompute_statistics(self, mini_batches: Iterable[Tensor], iteration: int) -> None:
        """Set the model's BN statistics to their plain average over the groups of these mini-batches.

        mini_batches: the `images` of each. A collective: every rank calls it.
        """
        total, count = torch.zeros(1), 0
        for images in mini_batches:
            self.world.watchdog.tick()
            total = total + self.batch_statistics(images).double().sum(dim=0)
            count += 1
        average = (total / (count * self.plan.groups)).float()
        self.statistics.average_into_model(average[None], iteration)

    def take_metrics(self) -> NDArray[np.float64]:
        """float64 [iterations since the last call, 3]: of each mini-batch its loss, its wrong predictions, 1 if it counted.

        The last is 0 where a gradient was not a number and the update was skipped. A collective,
        equal on every rank and, with the tree reduction, for every number of ranks.
        """
        if not self._metrics:
            return np.zeros((0, 3))
        local = torch.stack(self._metrics).cpu()
        self._metrics = []
        parts = [local]
        if self.world.size > 1:
            parts = [torch.empty_like(local) for _ in range(self.world.size)]
            dist.all_gather(parts, local)
        shares = torch.cat(parts, dim=1).numpy()
        return np.concatenate([shares[:, :, :2].sum(axis=1), shares[:, :1, 2]], axis=1)

    def close(self) -> None:
        self.reducer.close()
