"""One update of the weights (paper section 3.4). Line by line, for a batch of 256 and normalization groups of 32 images:

    if lr != last_lr: b = b * last_lr / lr            # caffe_momentum: v = lr b still holds the old rate's steps
    for k in 0 .. 7:                                  # the groups, in row order; every rank computes its own
        logits = net(images[k])                       # BN by the mean and variance of these 32 images
        loss = sum(cross_entropy(logits, labels[k])) / 256    # or another loss, or mixed labels: see loss.py
        g[k] = d loss / d weights
    g = ((g[0] + g[1]) + (g[2] + g[3])) + ((g[4] + g[5]) + (g[6] + g[7]))    # one fixed tree, within and across ranks
    if all(isfinite(g)):                              # else the update is skipped, and everything stays as it was
        b = momentum * b + (g + weight_decay * weights)    # or LAMB: see lamb.py
        weights = weights - lr * b                    # with v = lr b: v = momentum v + lr (g + ...), weights = weights - v
        for k in 0 .. 7:
            statistics[k] = 0.9 * statistics[k] + 0.1 * (mean and variance of group k)
        average = d * average + (1 - d) * weights     # where ema_decay is set; see average.py for d

Nothing here waits for the device: losses and errors stay on it until a log point calls `take_metrics`.
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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.command import UserError
from pipeline.process.world import World, gather_from_ranks
from pipeline.training.average import WeightAverage
from pipeline.training.batchnorm import GroupPlan, GroupStatistics, freeze_normalization
from pipeline.training.compiling import CompileBy, compile_for_training
from pipeline.training.loss import Criterion, Loss, Targets
from pipeline.training.optimizer import OptimizerConfig, build_optimizer, set_learning_rate
from pipeline.training.pacing import pacing
from pipeline.training.precision import Precision, images_dtype
from pipeline.training.reduction import GradientReducer, choose_mode
from pipeline.training.replay import Recorder, ReplayedUpdate, Update
from pipeline.training.spans import span
from pipeline.training.synced_batchnorm import share_normalization


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What an update depends on besides the model and the ranks: the values of a config with these names (`Config.step`).

    batch: images of the whole mini-batch.
    """

    batch: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reduction: Literal["auto", "tree", "allreduce"] = "auto"
    gradient_compression: Literal["none", "bf16"] = "none"
    precision: Precision = "float32"
    loss: Loss = "cross-entropy"
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    ema_decay: float = 0.0
    freeze_bn: bool = False
    compile_crop: int | None = None
    compile_by: CompileBy = "net"


class TrainingStep:
    """The model in training: `step(images, labels, lr)` makes one update on this rank's rows of the mini-batch.

    average: the moving average of the weights, None where `ema_decay` is 0. images_dtype: the type of the images that `step`
    takes. not_compiled: the reason why the net is not compiled, where the config asks for it.
    """

    def __init__(
        self, model: nn.Module, config: StepConfig, plan: GroupPlan, world: World, recorder: Recorder | None = None
    ) -> None:
        """recorder: records updates and replays them. Ranks then sum their gradients without DDP, after the backward pass.

        Raises UserError where these ranks cannot use the config's `reduction`, or cannot record. A collective: every rank
        calls it.
        """
        self.config, self.plan, self.world = config, plan, world
        mode = choose_mode(config.reduction, world.size, plan.local, config.gradient_compression)
        model = model.to(world.device).to(memory_format=torch.channels_last).train()
        if config.freeze_bn:
            freeze_normalization(model)
        average = copy.deepcopy(model) if config.ema_decay else None  # before its BN modules join process groups
        spans = plan.ranks_per_group > 1
        if spans and recorder is not None:
            raise UserError(
                f"cuda_graph cannot record normalization groups that span ranks, here {plan.ranks_per_group} of {world.size}: "
                f"start at most {plan.groups} processes, or set cuda_graph: false"
            )
        if spans:
            share_normalization(model, plan.ranks_per_group)
        self.model = model
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.criterion = Criterion(
            kind=config.loss, smoothing=config.label_smoothing, threshold=config.target_threshold
        )
        self.images_dtype = images_dtype(config.precision, world.device)
        self.not_compiled: str | None = None
        if config.compile_crop is not None:
            example = torch.Size((plan.micro_batch, 3, config.compile_crop, config.compile_crop))
            self.not_compiled = compile_for_training(
                self.model, example, self.images_dtype, config.precision, config.compile_by, world, meets_others=spans
            )
        self.statistics = GroupStatistics(self.model, plan, config.freeze_bn)
        self.average = WeightAverage(average, self.model, self.statistics, config.ema_decay) if average else None
        self.reducer = GradientReducer(
            model.parameters(), mode, world, config.gradient_compression, without_ddp=recorder is not None
        )
        self.network: nn.Module = self.model
        if world.size > 1 and recorder is None:
            # DDP must not copy buffers, since each group keeps its statistics. torch 2.15 renamed the switch and warns of
            # the old name.
            parameters = inspect.signature(DistributedDataParallel).parameters
            switch = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Several micro-batches need no_sync, where torch 2.15 fails with an internal assertion.
                static_graph=plan.local == 1,
                **{switch: False},  # type: ignore[arg-type]
            )
            self.network.register_comm_hook(None, self.reducer.hook)
        self._update = Update(compute=self._compute, reduce=self.reducer.sum_over_ranks, apply=self._apply)
        self._replayed = ReplayedUpdate(self._update, recorder) if recorder else None
        self._pacing = pacing(world.device)
        self._metrics: list[Tensor] = []  # [local micro-batches, 3] of each update: see `take_metrics`

    def step(self, images: Tensor, labels: Tensor, lr: float, mixed: tuple[Tensor, Tensor] | None = None) -> None:
        """Make one update with this rank's rows of the mini-batch.

        images: `images_dtype` [N, H, W, 3], normalized. labels: int64 [N]. mixed: where the images are mixed, `partners` and
        `weights` of `Targets`.
        """
        set_learning_rate(self.optimizer, lr, self.config.optimizer)
        if self.average:
            self.average.set_decay()
        self._metrics.append((self._replayed or self._update)(images, labels, *(mixed or ())))
        if self.average:
            self.average.updates += 1
        if self._pacing:
            self._pacing.queued()

    def _compute(self, images: Tensor, *of_targets: Tensor) -> Tensor:
        """Compute the gradients: `grad` of the parameters is this rank's sum, or with DDP that of all ranks.

        of_targets: the tensors of `Targets`. Returns the update's metrics, an element of `_metrics`, without the last column.
        """
        self.optimizer.zero_grad(set_to_none=True)
        size, targets = self.plan.micro_batch, Targets(*of_targets)
        metrics = torch.empty(self.plan.local, 3, dtype=torch.float64, device=self.world.device)
        for number in range(self.plan.local):
            rows = slice(number * size, (number + 1) * size)
            last = number == self.plan.local - 1
            with self.statistics.group(number):
                metrics[number, :2] = self._micro_batch(images[rows], targets.rows(rows), travels=last)
            if not last:
                with span("sum gradients of this rank"):
                    self.reducer.push_gradients()
        if not isinstance(self.network, DistributedDataParallel):
            with span("sum gradients of this rank"):
                self.reducer.finish_locally()
        return metrics

    def _apply(self, metrics: Tensor) -> None:
        """Update the weights by the summed gradients, at the optimizer's learning rate; completes `metrics`.

        Every tensor that this and `_compute` change keeps its address, because a CUDA graph replays fixed addresses.
        """
        # `finite` is the same on every rank, because the gradients are summed by now. The host does not wait for it: the
        # optimizer reads it on the device and skips an update that would poison the weights.
        gradients = [parameter.grad for parameter in self.reducer.parameters if parameter.grad is not None]
        finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
        self.statistics.commit(finite)
        self.optimizer.found_inf = (~finite).float()
        with span("optimizer"):
            self.optimizer.step()
        if self.average:
            self.average.update(finite)
        metrics[:, 2] = finite

    def _micro_batch(self, images: Tensor, targets: Targets, *, travels: bool) -> Tensor:
        """Forward and backward pass of one micro-batch; returns [its share of the loss, its wrong predictions].

        travels: it is the rank's last, after which DDP sums the gradients over the ranks.
        """
        waits = isinstance(self.network, DistributedDataParallel) and not travels
        bf16 = self.config.precision == "bf16"
        with self.network.no_sync() if waits else nullcontext():  # type: ignore[operator]
            # NHWC in memory seen as NCHW is channels_last: no copy.
            with span("forward"), torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
                logits = self.network(images.permute(0, 3, 1, 2))
                # bf16 has 8 bits: the softmax and its loss are float32 (float64 stays, for tests).
                logits = logits.float() if logits.dtype == torch.bfloat16 else logits
                loss = self.criterion(logits, targets) / self.config.batch
            with span("backward"):
                loss.backward()
        with torch.no_grad():
            if not self.criterion.is_reported:
                loss = self.criterion.reported(logits, targets) / self.config.batch
            wrong = logits.argmax(dim=1) != targets.dominant()
            return torch.stack([loss.detach(), wrong.sum().to(loss.dtype)])

    def batch_statistics(self, images: Tensor) -> Tensor:
        """float32 [groups, C]: BN statistics of one mini-batch's groups; `images` as in `step`.

        A collective: every rank calls it.
        """
        bf16 = self.config.precision == "bf16"
        with set_stance("force_eager"), torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
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
        """float64 [updates since the last call, 3]: the loss of each mini-batch, its wrong predictions, and 1 or 0.

        0: a gradient was not finite, and the update was skipped. Equal on every rank and, with the tree reduction, for
        every number of ranks. A collective: every rank calls it.
        """
        if not self._metrics:
            return np.zeros((0, 3))
        shares = torch.cat(gather_from_ranks(torch.stack(self._metrics).cpu()), dim=1).numpy()
        self._metrics = []
        return np.concatenate([shares[:, :, :2].sum(axis=1), shares[:, :1, 2]], axis=1)

    def close(self) -> None:
        self.reducer.close()
