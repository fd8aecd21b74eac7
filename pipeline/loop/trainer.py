"""A run's state between two updates, and what moves it: updates, evaluation, checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.data.dataset import Dataset
from pipeline.data.loader import BatchIterator, training_batches
from pipeline.data.order import Order
from pipeline.evaluation.scoring import evaluate_errors
from pipeline.models.resnet import build
from pipeline.process.world import World, on_main, sum_over_ranks
from pipeline.run.config import Config
from pipeline.training import nonfinite
from pipeline.training.batchnorm import plan_groups
from pipeline.training.checkpoint import Checkpoints, read_verified
from pipeline.training.clock import Clock
from pipeline.training.compiling import eager
from pipeline.training.replay import cuda_graphs
from pipeline.training.schedule import Schedule
from pipeline.training.step import TrainingStep

SKIPPED_AT_MOST = 50  # updates in a row, where on_nonfinite is skip: the run is lost by then


class Trainer:
    """A run's state between two updates, and what moves it: `iteration` counts the updates done."""

    def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
        self.config, self.dataset, self.world = config, dataset, world
        cores = max(1, available_cores() // world.local_size)
        self.loader = replace(config.loader, threads=config.loader.threads or cores)
        self.train_split = dataset.split("train")
        self.val_split = dataset.split("val") if "val" in dataset.manifest.splits else None
        if self.val_split is None and config.schedule.kind == "plateau":
            raise UserError(
                f"the plateau schedule follows the val error, and {dataset.folder} has no val split: "
                "prepare one, or use schedule.kind steps or cosine"
            )
        self.order = Order(len(self.train_split), config.batch, config.seed, config.shuffle_block)
        self.plan = plan_groups(config.batch, config.bn_group, world.rank, world.size)
        generator = torch.Generator().manual_seed(config.seed)
        model = build(
            config.arch,
            classes=dataset.classes,
            shortcut=config.shortcut,
            stride=config.stride,
            generator=generator,
        )
        self.step = TrainingStep(model, config.step, self.plan, world, cuda_graphs(config.cuda_graph, world))
        if world.is_main:
            self._warn()
        self.schedule = Schedule(config.schedule, config.optimizer.lr, config.iterations)
        self.iteration = 0
        self.interval = np.zeros((0, 2))  # loss and wrong predictions of each update since the last log point
        self.skipped = 0  # updates in a row that were none
        self.errors: dict[str, float] = {}  # the latest of each, percent
        self.best: dict[str, float] = {}  # val top-1 error (percent) and iteration of the best evaluation
        self.evaluated: dict[str, int] = {}  # the iteration of the last evaluation of each kind
        self.recomputed: dict[str, torch.Tensor] | None = None  # the model with recomputed BN statistics, at the end
        self.figures: dict[str, str] = {}
        self.clock = Clock()
        self.stalled = 0.0  # seconds of the longest save since the last log point, on the main rank

    def _warn(self) -> None:
        if self.step.not_compiled is not None:
            print(f"warning: training goes on without torch.compile: {self.step.not_compiled}", file=sys.stderr)
        on_cpu = self.world.device.type == "cpu"
        if self.config.precision == "bf16" and on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            print(
                "warning: this CPU has no bf16 units, which makes precision bf16 slower than float32", file=sys.stderr
            )

    def batches(self, count: int | None = None) -> BatchIterator:
        """This rank's rows of every mini-batch still to come, or of the next `count`."""
        config = self.config
        bf16_on_gpu = config.precision == "bf16" and self.world.device.type == "cuda"
        return training_batches(
            self.train_split,
            self.order,
            config.augment,
            self.dataset.statistics,
            rows=self.plan.rows,
            start_iteration=self.iteration,
            stop_iteration=config.iterations if count is None else self.iteration + count,
            device=self.world.device,
            config=self.loader,
            dtype=torch.bfloat16 if bf16_on_gpu else torch.float32,
        )

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.world.watchdog.note("forward and backward", self.iteration)
        self.step.step(images, labels, self.schedule.lr(self.iteration))
        self.iteration += 1
        self.clock.updates += 1

    def take_interval(self, batches: BatchIterator) -> dict[str, float]:
        """The training metrics since the last log point; a collective."""
        lr = self.schedule.lr(self.iteration - 1)
        self._collect()
        if not len(self.interval):
            return {"lr": lr}  # every update was skipped
        loss, wrong = (float(mean) for mean in self.interval.mean(axis=0))
        error = 100 * wrong / self.config.batch
        self.interval = np.zeros((0, 2))
        self.errors["train_error"] = error
        self.schedule.observe_train_error(error)
        seconds, updates, waited = self.clock.take(batches.wait_seconds)
        rate = updates * self.config.batch / seconds
        self.figures |= {"images/s": f"{rate:,.0f}", "lr": f"{lr:g}", "loss": f"{loss:.4f}", "error": f"{error:.2f}%"}
        metrics = {"loss": loss, "top1_error": error, "lr": lr}
        metrics |= {"images_per_second": rate, "data_wait_share": waited / seconds}
        if self.stalled:
            metrics["checkpoint_stall_seconds"], self.stalled = self.stalled, 0.0
        if self.config.loader.on_decode_error == "substitute":
            metrics["substituted_images"] = sum_over_ranks(self.world, batches.substituted)
        return metrics

    @property
    def is_best(self) -> bool:
        """Whether the weights as they are now have the lowest val error so far."""
        return self.best.get("iteration") == self.iteration

    def evaluations(self, give_up: Callable[[], bool]) -> Iterator[tuple[str, dict[str, float]]]:
        """(kind, val errors) of each evaluation that is due at this iteration and was not made yet; a collective.

        give_up: as in `evaluate_errors`. Raises GivenUp; a checkpoint that is saved then is the one to make the rest from.
        """
        last = self.iteration == self.config.iterations
        if not (self.val_split and self.iteration and (self.iteration % self.config.evaluation.every == 0 or last)):
            return
        makers = {"val": self.evaluate}
        if self.config.ema_decay:
            makers["val_ema"] = self.evaluate_average
        for kind, make in makers.items():
            if self.evaluated.get(kind) != self.iteration:
                self.world.watchdog.note("evaluation", self.iteration)
                errors = make(give_up)
                self.evaluated[kind] = self.iteration
                yield kind, errors

    def evaluate(self, give_up: Callable[[], bool]) -> dict[str, float]:
        """Top-1 and top-5 error on val (percent), exact whatever the number of ranks; a collective."""
        with self.clock.paused():
            self._collect()  # at the learning rate that it was made with: the error may change that
            self._average_statistics()
            top1, top5 = self._val_errors(self.step.model, give_up)
            self.errors |= {"val_top1": top1, "val_top5": top5}
            if top1 < self.best.get("error", float("inf")):
                self.best = {"error": top1, "iteration": self.iteration}
            self.schedule.observe_val_error(top1)
            self.figures["val"] = f"{top1:.2f}%"
            return {"top1_error": top1, "top5_error": top5}

    def evaluate_average(self, give_up: Callable[[], bool]) -> dict[str, float]:
        """As `evaluate`, of the moving average of the weights; the schedule and the best error are the weights' own."""
        average = self.step.average
        assert average is not None
        with self.clock.paused():
            average.statistics.average_into_model(average.statistics.all_groups(), self.iteration)
            top1, top5 = self._val_errors(average.model, give_up)
            self.errors |= {"val_top1_ema": top1, "val_top5_ema": top5}
            return {"top1_error": top1, "top5_error": top5}

    def recompute_statistics(self) -> dict[str, float]:
        """BN statistics as a plain average over the training images that would come next, and the val errors with them.

        The weights with them become a second set in the checkpoints that follow; equal for every number of ranks. A
        collective.
        """
        mini_batches = -(-self.config.recompute_bn_images // self.config.batch)
        total = torch.zeros(1)
        with self.batches(mini_batches) as batches:
            for batch in batches:
                self.world.watchdog.tick()
                total = total + self.step.batch_statistics(batch.images).double().sum(dim=0)
        average = (total / (mini_batches * self.plan.groups)).float()
        self.step.statistics.average_into_model(average[None], self.iteration)
        self.recomputed = {name: value.clone() for name, value in self.step.model.state_dict().items()}
        if self.val_split is None:
            return {}
        top1, top5 = self._val_errors(self.step.model)
        self.errors |= {"val_top1_recomputed_bn": top1, "val_top5_recomputed_bn": top5}
        return {"top1_error": top1, "top5_error": top5}

    def _val_errors(self, model: torch.nn.Module, give_up: Callable[[], bool] = lambda: False) -> tuple[float, float]:
        """(top-1, top-5) of `model` with the statistics that its buffers hold."""
        assert self.val_split is not None
        with eager():
            return evaluate_errors(
                model,
                self.val_split,
                statistics=self.dataset.statistics,
                short_side=self.config.evaluation.short_side,
                crop=self.config.test_crop,
                world=self.world,
                loader_config=self.loader,
                precision=self.config.precision,
                give_up=give_up,
            )

    def save(self, checkpoints: Checkpoints) -> None:
        """Start writing a checkpoint of the state as it is now; a collective.

        How long training stood still for it is the metric `checkpoint_stall_seconds` of the next log point.
        """
        started = time.monotonic()
        self.world.watchdog.note("saving", self.iteration)
        with self.clock.paused():
            self._collect()
            statistics = self._average_statistics()
            average = self.step.average
            if average:
                ema_statistics = average.statistics.all_groups()
                average.statistics.average_into_model(ema_statistics, self.iteration)
            if not self.world.is_main:
                return
            state: dict[str, Any] = {
                "iteration": self.iteration,
                "model": self.step.model.state_dict(),
                "training": {
                    "optimizer": self.step.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "statistics": statistics,
                    "interval": torch.from_numpy(self.interval),
                    "errors": self.errors,
                    "best": self.best,
                    "evaluated": self.evaluated,
                },
            }
            if average:
                state["model_ema"] = average.model.state_dict()
                state["training"]["ema_statistics"] = ema_statistics
            if self.recomputed is not None:
                state["model_recomputed_bn"] = self.recomputed
            best = self.best.get("iteration")
            checkpoints.save(self.iteration, state, best_iteration=None if best is None else int(best))
            self.stalled = max(self.stalled, time.monotonic() - started)

    def restore(self, checkpoints: Checkpoints) -> None:
        """Go back to the newest sound checkpoint, where there is one; a collective."""
        newest = on_main(self.world, lambda: found.path.name if (found := checkpoints.newest()) else None)
        if newest is None:
            return
        path = checkpoints.folder / newest
        state = read_verified(path)
        if state is None:
            raise UserError(
                f"rank {self.world.rank} cannot read {path}: the run folder must be the same for every rank"
            )
        saved = state["training"]
        self.iteration = state["iteration"]
        self.step.model.load_state_dict(state["model"])
        self.step.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step.statistics.load_all_groups(saved["statistics"])
        if average := self.step.average:
            average.model.load_state_dict(state["model_ema"])
            average.statistics.load_all_groups(saved["ema_statistics"])
            average.updates = self.iteration
        self.interval, self.errors, self.best = saved["interval"].numpy(), saved["errors"], saved["best"]
        # Checkpoints of earlier versions were made after their evaluations.
        self.evaluated = saved.get("evaluated", dict.fromkeys(("val", "val_ema"), self.iteration))

    def close(self) -> None:
        """Give the threads back; several runs may follow one another in one process (Ray, tests)."""
        self.step.close()

    def _collect(self) -> None:
        """Fetch the metrics of the updates since the last call; raises UserError where one was none and must not be."""
        fresh = self.step.take_metrics()
        sound = np.isfinite(fresh[:, 0]) & (fresh[:, 2] == 1)
        first = self.iteration - len(fresh)
        for place, good in enumerate(sound):
            self.skipped = 0 if good else self.skipped + 1
            if good:
                continue
            self._record_nonfinite(first + place, float(fresh[place, 0]))
            if self.config.on_nonfinite == "stop" or self.skipped == SKIPPED_AT_MOST:
                record = self.config.run_folder / nonfinite.FILE
                raise UserError(
                    f"the loss or gradient of iteration {first + place} is not a number (see {record}): nothing of it was "
                    "saved; start another run with a smaller optimizer.lr or a warm-up, or go on with on_nonfinite: skip"
                )
        self.interval = np.concatenate([self.interval, fresh[sound, :2]])

    def _record_nonfinite(self, iteration: int, loss: float) -> None:
        if self.world.is_main:
            samples = self.order.minibatch(iteration).ids.tolist()
            nonfinite.record(self.config.run_folder, iteration, self.schedule.lr(iteration), loss, samples)

    def _average_statistics(self) -> torch.Tensor:
        statistics = self.step.statistics.all_groups()
        self.step.statistics.average_into_model(statistics, self.iteration)
        return statistics
