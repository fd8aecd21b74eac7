"""Train one net: the whole story on one page. Started by a door in launch/, or alone: python -m pipeline.train

A run is a pure function of (dataset, config, seed); the world only decides how fast it is computed. It is a folder:
starting a run whose folder exists continues it from its newest sound checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline import command
from pipeline.command import EXIT_PREEMPTED, Progress, UserError
from pipeline.config import Config, parse, parser, to_plain, to_yaml
from pipeline.data.dataset import Dataset
from pipeline.data.loader import BatchIterator, training_batches
from pipeline.data.order import Order
from pipeline.evaluation.protocols import evaluate_errors
from pipeline.models.resnet import build
from pipeline.run_folder import CONFIG, OpenRun, open_run
from pipeline.tracking import Tracker, open_tracker
from pipeline.training.batchnorm import plan_groups
from pipeline.training.checkpoint import Checkpoints, read_verified
from pipeline.training.preemption import StopRequest
from pipeline.training.reduction import choose_mode
from pipeline.training.schedule import Schedule
from pipeline.training.step import TrainingStep
from pipeline.world import World, available_cores, on_main, open_world, set_threads

ERRORS = {  # of the closing table
    "train_error": "train error",
    "val_top1": "val top-1 error",
    "val_top5": "val top-5 error",
    "val_top1_recomputed_bn": "top-1, BN recomputed",
}
EXAMPLE = "python launch/local.py --config configs/demo.yaml --procs 2"


def main(config: Config) -> int:
    """Train the run that `config` describes, or go on with it. Every rank calls this; the launcher set the environment.

    Returns 0 where the run is finished, EXIT_PREEMPTED where it was asked to stop and has saved. Raises UserError.
    """
    with open_world(config.device, config.timeout_seconds) as world:
        threads = set_threads(world, config.threads)
        dataset = Dataset(config.data)
        training = Training(config, dataset, world)
        with open_run(config, dataset, world, threads) as run_folder:
            checkpoints = Checkpoints(config.run_folder / "checkpoints", config.checkpoint, run_folder.check)
            training.restore(checkpoints)
            if training.iteration == config.iterations:
                return report(config, training, "was finished already")
            with (
                tracker_of(config, run_folder.facts, world) as tracker,
                StopRequest(world) as stop,
            ):
                finished = train(training, checkpoints, tracker, stop, run_folder)
                if world.is_main:
                    checkpoints.wait()
                    tracker.finish("FINISHED" if finished else "KILLED")
            return report(config, training, "finished" if finished else "stopped on request")


def train(
    training: Training, checkpoints: Checkpoints, tracker: Tracker, stop: StopRequest, run_folder: OpenRun
) -> bool:
    """Iterate to the end; False where it was asked to stop before (everything is saved then)."""
    config, world = training.config, training.world

    def log(kind: str, values: dict[str, float]) -> None:
        run_folder.check()
        tracker.log(kind, training.iteration, values)

    bar = Progress(config.iterations, config.run_name, "it", start=training.iteration, enabled=world.is_main)
    with training.batches() as batches, bar as progress:
        for batch in batches:
            if stop.agreed():
                training.save(checkpoints)
                return False
            training.update(batch.images, batch.labels)
            done, last = training.iteration, training.iteration == config.iterations
            if done % config.tracking.log_every == 0 or last:
                log("train", training.take_interval(batches.wait_seconds))
            if training.val_split and (done % config.evaluation.every == 0 or last):
                log("val", training.evaluate())
            if last and config.recompute_bn_images:
                log("val_recomputed_bn", training.recompute_statistics())
            if done % config.checkpoint.every == 0 or last:
                training.save(checkpoints)
            progress.advance(**training.figures)
    stop.drain()
    return True


class Training:
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
        self.plan = plan_groups(config.batch, config.bn_group, world.rank, world.size)
        generator = torch.Generator().manual_seed(config.seed)
        model = build(
            config.arch,
            classes=dataset.classes,
            shortcut=config.shortcut,
            stride=config.stride,
            generator=generator,
        )
        self.step = TrainingStep(
            model,
            batch=config.batch,
            plan=self.plan,
            optimizer=config.optimizer,
            reduction=choose_mode(config.reduction, world.size, self.plan.local),
            precision=config.precision,
            world=world,
        )
        self.schedule = Schedule(config.schedule, config.optimizer.lr, config.iterations)
        self.iteration = 0
        self.interval = np.zeros((0, 2))  # loss and wrong predictions of each update since the last log point
        self.errors: dict[str, float] = {}  # the latest of each, percent
        self.best: dict[str, float] = {}  # val top-1 error (percent) and iteration of the best evaluation
        self.recomputed: dict[str, torch.Tensor] | None = None  # the model with recomputed BN statistics, at the end
        self.figures: dict[str, str] = {}
        self.clock = Clock()

    def batches(self, count: int | None = None) -> BatchIterator:
        """This rank's rows of every mini-batch still to come, or of the next `count`."""
        config = self.config
        return training_batches(
            self.train_split,
            Order(samples=len(self.train_split), batch=config.batch, seed=config.seed, block=config.shuffle_block),
            config.augment,
            self.dataset.statistics,
            rows=self.plan.rows,
            start_iteration=self.iteration,
            stop_iteration=config.iterations if count is None else self.iteration + count,
            device=self.world.device,
            config=self.loader,
        )

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.step.step(images, labels, self.schedule.lr(self.iteration))
        self.iteration += 1
        self.clock.updates += 1

    def take_interval(self, wait_seconds: float) -> dict[str, float]:
        """The training metrics since the last log point; a collective."""
        lr = self.schedule.lr(self.iteration - 1)
        self._collect()
        loss, wrong = (float(mean) for mean in self.interval.mean(axis=0))
        error = 100 * wrong / self.config.batch
        self.interval = np.zeros((0, 2))
        self.errors["train_error"] = error
        self.schedule.observe_train_error(error)
        seconds, updates, waited = self.clock.take(wait_seconds)
        rate = updates * self.config.batch / seconds
        self.figures |= {"images/s": f"{rate:,.0f}", "lr": f"{lr:g}", "loss": f"{loss:.4f}", "error": f"{error:.2f}%"}
        speed = {"images_per_second": rate, "data_wait_share": waited / seconds}
        return {"loss": loss, "error": error, "lr": lr, **speed}

    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 error on val (percent), exact whatever the number of ranks; a collective."""
        with self.clock.paused():
            self._average_statistics()
            top1, top5 = self._val_errors()
            self.errors |= {"val_top1": top1, "val_top5": top5}
            if top1 < self.best.get("error", float("inf")):
                self.best = {"error": top1, "iteration": self.iteration}
            self.schedule.observe_val_error(top1)
            self.figures["val"] = f"{top1:.2f}%"
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
                total = total + self.step.batch_statistics(batch.images).double().sum(dim=0)
        average = (total / (mini_batches * self.plan.groups)).float()
        self.step.statistics.average_into_model(average[None], self.iteration)
        self.recomputed = {name: value.clone() for name, value in self.step.model.state_dict().items()}
        if self.val_split is None:
            return {}
        top1, top5 = self._val_errors()
        self.errors |= {"val_top1_recomputed_bn": top1, "val_top5_recomputed_bn": top5}
        return {"top1_error": top1, "top5_error": top5}

    def _val_errors(self) -> tuple[float, float]:
        """(top-1, top-5) of the model with the statistics that its buffers hold."""
        assert self.val_split is not None
        errors = evaluate_errors(
            self.step.model,
            self.val_split,
            statistics=self.dataset.statistics,
            short_side=self.config.evaluation.short_side,
            crop=self.config.augment.crop,
            world=self.world,
            loader_config=self.loader,
            precision=self.config.precision,
        )
        self.step.model.train()
        return errors

    def save(self, checkpoints: Checkpoints) -> None:
        """Start writing a checkpoint of the state as it is now; a collective."""
        with self.clock.paused():
            self._collect()
            statistics = self._average_statistics()
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
                },
            }
            if self.recomputed is not None:
                state["model_recomputed_bn"] = self.recomputed
            best = self.best.get("iteration")
            checkpoints.save(self.iteration, state, best_iteration=None if best is None else int(best))

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
        self.interval, self.errors, self.best = saved["interval"].numpy(), saved["errors"], saved["best"]

    def _collect(self) -> None:
        """Fetch the losses of the updates since the last call; raises UserError where one is not a number."""
        fresh = self.step.take_metrics()
        bad = np.flatnonzero(~np.isfinite(fresh[:, 0]))
        if len(bad):
            iteration = self.iteration - len(fresh) + int(bad[0])
            raise UserError(
                f"the loss of iteration {iteration} is {fresh[bad[0], 0]} (learning rate {self.schedule.lr(iteration):g}): "
                "nothing of it was saved; start again with a smaller optimizer.lr or a warm-up"
            )
        self.interval = np.concatenate([self.interval, fresh])

    def _average_statistics(self) -> torch.Tensor:
        statistics = self.step.statistics.all_groups()
        self.step.statistics.average_into_model(statistics, self.iteration)
        return statistics


class Clock:
    """Time spent on updates alone: evaluation and checkpoints stop it."""

    def __init__(self) -> None:
        self.updates, self.started, self.excluded, self.waited = 0, time.monotonic(), 0.0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.excluded += time.monotonic() - started

    def take(self, wait_seconds: float) -> tuple[float, int, float]:
        """(seconds, updates, seconds waited for data) since the last call."""
        now = time.monotonic()
        result = (max(now - self.started - self.excluded, 1e-9), self.updates, wait_seconds - self.waited)
        self.updates, self.started, self.excluded, self.waited = 0, now, 0.0, wait_seconds
        return result


def tracker_of(config: Config, facts: dict[str, Any], world: World) -> Tracker:
    """The run's metrics.jsonl and MLflow run, on the main rank; a null tracker on the others."""
    attempt = facts["attempts"][-1]
    tags = {key: str(attempt[key]) for key in ("git_commit", "launcher", "world_size", "device", "host", "threads")}
    tracker = open_tracker(
        config.run_folder,
        config.tracking,
        name=config.run_name,
        params=to_plain(config),
        tags={"arch": config.arch, "dataset_sha256": facts["dataset_sha256"], **tags},
        enabled=world.is_main,
    )
    if world.is_main:
        tracker.artifact(config.run_folder / CONFIG)
    return tracker


def report(config: Config, training: Training, outcome: str) -> int:
    """Print the closing table on the main rank; the exit code."""
    if training.world.is_main:
        errors = training.errors
        cells = [f"{errors[key]:.2f}" if key in errors else "-" for key in ERRORS]
        columns = ("net", "iterations", *(f"{title} %" for title in ERRORS.values()), "run folder")
        row = (config.arch, f"{training.iteration:,} of {config.iterations:,}", *cells, config.run_folder)
        command.print_table(f"{config.run_name} {outcome}", columns, [row])
    return 0 if training.iteration == config.iterations else EXIT_PREEMPTED


def run(argv: Sequence[str] | None = None) -> int:
    """The command `python -m pipeline.train`: one rank, or one of several under torchrun."""
    options = parser("Trains one net on the dataset folder that the config names, or goes on with its run.", EXAMPLE)
    config, own = parse(options, sys.argv[1:] if argv is None else argv)
    if own.print_config:
        print(to_yaml(config), end="")
        return 0
    return main(config)


if __name__ == "__main__":
    command.run(run)
