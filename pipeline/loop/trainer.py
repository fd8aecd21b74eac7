"""What a run consists of between two updates, and what moves it on: updates, log points, val errors, checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.base.command import UserError
from pipeline.base.layout import NONFINITE
from pipeline.data.dataset import Dataset
from pipeline.data.ladder import Record, decoding_facts, with_decoder
from pipeline.data.loader import BatchIterator, training_batches
from pipeline.data.mixing import check_pairs
from pipeline.data.order import Order
from pipeline.data.plans import evaluation_plan, training_plan
from pipeline.data.probe import LIMIT_SECONDS, Probe
from pipeline.data.tuned import with_queues
from pipeline.data.views import CenterCrop
from pipeline.loop.progress import RECOMPUTED_BN, WEIGHTS, Clock, RunProgress
from pipeline.loop.validation import Validation
from pipeline.models.resnet import build
from pipeline.process.stragglers import Slowest, Watch, slowest
from pipeline.process.world import World, gather_from_ranks, on_main, sum_over_ranks
from pipeline.run.config import Config
from pipeline.run.folder import check_metrics, foreign, origin_of
from pipeline.tracking.figures import epoch_of
from pipeline.training.batchnorm import plan_groups
from pipeline.training.checkpoint import Checkpoint, Checkpoints, UnsoundError, read_verified
from pipeline.training.precision import check_precision
from pipeline.training.replay import cuda_graphs
from pipeline.training.schedule import Schedule
from pipeline.training.step import TrainingStep

SKIPPED_AT_MOST = 50  # consecutive skipped updates, where on_nonfinite is skip: a run that skips more is lost


class Trainer:
    """A run on this rank: `step` updates the model, `schedule` says the learning rate, `progress` how far the run is.

    figures: what the progress bar shows. validation: None where the dataset has no val images.
    """

    def __init__(
        self, config: Config, dataset: Dataset, world: World, initial: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """initial: weights that the net starts from, by its own names; the rest of it starts at random, as all without them."""
        check_precision(config.precision, world.device, warns=world.is_main)
        self.config, self.dataset, self.world = config, dataset, world
        self.loader = with_queues(config.loader, world)
        self.statistics = dataset.statistics.subtracting(config.subtract)
        self.train_split = dataset.split("train")
        val_split = dataset.split("val") if "val" in dataset.manifest.splits else None
        if not val_split and config.schedule.kind == "plateau":
            raise UserError(
                f"the plateau schedule follows the val error, and {dataset.folder} has no val split: "
                "prepare one (data_prep/shard_imagenet.py --hold-out 0.1), or use schedule.kind steps or cosine"
            )
        self.order = Order(len(self.train_split), config.batch, config.seed, config.shuffle_block)
        self.plan = plan_groups(config.batch, config.bn_group, world.rank, world.size)
        check_pairs(config.mixing, config.batch, world.size)
        generator = torch.Generator().manual_seed(config.seed)
        model = build(
            config.arch, classes=dataset.classes, shortcut=config.shortcut, stride=config.stride, generator=generator
        )
        if initial is not None:
            model.load_state_dict(initial, strict=False)
        self.step = TrainingStep(model, config.step, self.plan, world, cuda_graphs(config.cuda_graph, world))
        if world.is_main:
            self._warn()
        self.schedule = Schedule(config.schedule, config.optimizer.lr, config.iterations)
        self.progress = RunProgress()
        self.validation: Validation | None = None
        if val_split:
            self.validation = Validation(config, val_split, self.statistics, self.loader, self.step, self.progress)
        self.recomputed: dict[str, torch.Tensor] | None = None  # the model with recomputed BN statistics, at the end
        self.skipped = 0  # consecutive skipped updates
        self.figures: dict[str, str] = {}
        self.clock = Clock()
        self.watch = Watch(world.hosts)
        self.stalled = 0.0  # seconds of the longest save since the last log point, on the main rank

    def _warn(self) -> None:
        if self.step.not_compiled is not None:
            print(f"warning: training goes on without torch.compile: {self.step.not_compiled}", file=sys.stderr)

    @property
    def computing(self) -> dict[str, Any]:
        """How this attempt computes its updates, for its record in run.json."""
        config, failed = self.config, self.step.not_compiled
        facts: dict[str, Any] = {"precision": config.precision, "compiled": config.compile and failed is None}
        if facts["compiled"]:
            return {**facts, "compile_by": config.compile_by}
        return {**facts, "not_compiled": failed or "compile is false"}

    def choose_decoder(self, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Decide how images are decoded from now on; what to record of it. A collective: every rank calls it.

        attempts: of the run, this one last (run.json). See `with_decoder`, and for the errors too.
        """
        config, statistics = self.config, self.statistics
        augment = replace(config.augment, stages=())  # the graphs of other stages differ in size alone
        plans = [training_plan(self.train_split, config.seed, augment, statistics, config.batch)]
        if self.validation:
            view = CenterCrop(short_side=config.evaluation.short_side, crop=config.test_crop)
            plans.append(evaluation_plan(self.validation.split, view, statistics))
        # Other ranks wait meanwhile, in a collective, for three children at most.
        probe = Probe(min(LIMIT_SECONDS, config.timeout_seconds / 4))
        self.loader = with_decoder(
            self.loader, self.world, plans, record=Record.of(attempts[:-1]), new=len(attempts) == 1, probe=probe
        )
        if self.world.is_main and (sentence := self.loader.decoding_warning(self.world.device)) is not None:
            print(f"warning: {sentence}", file=sys.stderr)
        if self.validation:
            self.validation = replace(self.validation, loader=self.loader)
        return decoding_facts(self.loader, self.world.device)

    def batches(self, count: int | None = None) -> BatchIterator:
        """This rank's rows of every mini-batch still to come, or of the next `count`."""
        config, iteration = self.config, self.progress.iteration
        return training_batches(
            self.train_split,
            self.order,
            config.augment,
            self.statistics,
            rows=self.plan.rows,
            start_iteration=iteration,
            stop_iteration=config.iterations if count is None else iteration + count,
            device=self.world.device,
            config=self.loader,
            mixing=config.mixing,
            dtype=self.step.images_dtype,
        )

    def update(
        self, images: torch.Tensor, labels: torch.Tensor, mixed: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        """Make one update on this rank's rows of a mini-batch, as a Batch holds them."""
        self.world.watchdog.note("forward and backward", self.progress.iteration)
        self.step.step(images, labels, self.schedule.lr(self.progress.iteration), mixed)
        self.progress.iteration += 1
        self.clock.updates += 1

    def take_interval(self, batches: BatchIterator) -> dict[str, float]:
        """The training metrics since the last log point. A collective: every rank calls it."""
        lr = self.schedule.lr(self.progress.iteration - 1)
        self._collect()
        means = self.progress.take_interval()
        if means is None:
            return {"lr": lr}  # every update was skipped, on every rank
        loss, wrong = means
        error = 100 * wrong / self.config.batch
        self.progress.errors["train_error"] = error
        self.schedule.observe_train_error(error)
        seconds, updates, waited = self.clock.take(batches.wait_seconds)
        found = self._find_slowest(seconds, waited)
        rate = updates * self.config.batch / seconds
        self.figures |= {
            "epoch": self._epoch(),
            "images/s": f"{rate:,.0f}",
            "lr": f"{lr:g}",
            "loss": f"{loss:.4f}",
            "error": f"{error:.2f}%",
        }
        metrics = {"loss": loss, "top1_error": error, "lr": lr}
        metrics |= {"images_per_second": rate, "data_wait_share": waited / seconds}
        metrics |= found.metrics() if found else {}
        if self.stalled:
            metrics["checkpoint_stall_seconds"], self.stalled = self.stalled, 0.0
        if self.config.loader.on_decode_error == "substitute":
            metrics["substituted_images"] = sum_over_ranks(self.world, batches.substituted)
        return metrics

    def _find_slowest(self, seconds: float, waited: float) -> Slowest | None:
        """The slowest rank since the last log point; None where there is one rank. A collective: every rank calls it.

        seconds: spent on updates; waited: for data. Warns on the main rank where one holds the others up.
        """
        if self.world.size == 1:
            return None
        own = torch.tensor([seconds - self.step.reducer.waits.take(), waited], dtype=torch.float64)
        found = slowest(*zip(*(values.tolist() for values in gather_from_ranks(own)), strict=True))
        if (sentence := self.watch.see(found, seconds)) and self.world.is_main:
            print(f"warning: {sentence}", file=sys.stderr)
        return found

    def evaluations(self, give_up: Callable[[], bool]) -> Iterator[tuple[str, dict[str, float]]]:
        """(kind, val errors) of each evaluation that is due at this iteration. A collective: every rank calls it.

        give_up: as in `evaluate_errors`. Raises GivenUp; a checkpoint that is saved then says which evaluations are left.
        """
        if self.validation is None:
            return
        for kind in self.validation.due():
            self.world.watchdog.note("evaluation", self.progress.iteration)
            with self.clock.paused():
                self._collect()  # first: a skipped update is recorded with its learning rate, which the val error may change
                errors = self.validation.evaluate(kind, give_up)
            if kind == WEIGHTS:
                self.schedule.observe_val_error(errors["top1_error"])
                self.figures["val"] = f"{errors['top1_error']:.2f}%"
            self.progress.evaluated[kind] = self.progress.iteration
            yield kind, errors

    def _epoch(self) -> str:
        config = self.config
        return epoch_of(self.progress.iteration, config.iterations, config.batch, len(self.train_split))

    def recompute_statistics(self) -> dict[str, float]:
        """Recompute the BN statistics over the training images that would come next; the val errors with them.

        The model with these statistics is a second set of weights in the checkpoints that follow, equal for every number
        of ranks. A collective: every rank calls it.
        """
        mini_batches = -(-self.config.recompute_bn_images // self.config.batch)
        with self.batches(mini_batches) as batches:
            self.step.recompute_statistics((batch.images for batch in batches), self.progress.iteration)
        self.recomputed = {name: value.clone() for name, value in self.step.model.state_dict().items()}
        return self.validation.evaluate(RECOMPUTED_BN) if self.validation else {}

    def save(self, checkpoints: Checkpoints) -> None:
        """Start writing a checkpoint of the state as it is now. A collective: every rank calls it.

        How long training stood still for it is the metric `checkpoint_stall_seconds` of the next log point.
        """
        started = time.monotonic()
        self.world.watchdog.note("saving", self.progress.iteration)
        with self.clock.paused():
            self._collect()
            state = self._state_dict()
            if self.world.is_main:
                checkpoints.save(self.progress.iteration, state, best_iteration=self.progress.best_iteration)
                self.stalled = max(self.stalled, time.monotonic() - started)

    def restore(self, checkpoints: Checkpoints) -> None:
        """Go back to the newest sound checkpoint of this net, where there is one. A collective: every rank calls it.

        Raises UserError where there are checkpoints and none is, and as `check_metrics`.
        """
        found: Checkpoint | None = None

        def find() -> str | None:
            nonlocal found
            found = checkpoints.newest()
            if found is None:
                return None
            # First, so that a refusal changes nothing.
            check_metrics(self.config.run_folder, found.state["training"].get("logged", {}))
            checkpoints.go_on_from(found)
            return found.path.name

        newest = on_main(self.world, find)
        if newest is None:
            return
        if not self.world.is_main:
            try:
                found = read_verified(checkpoints.folder / newest)
            except UnsoundError as error:
                raise UserError(
                    f"rank {self.world.rank} cannot read {checkpoints.folder / newest} ({error}): "
                    "the run folder must be the same for every rank"
                ) from None
        assert found is not None
        self._load_state_dict(found.state)

    def misfit(self, state: Mapping[str, Any]) -> str | None:
        """Why the state of a sound checkpoint is none that this training can have saved; None where it may be."""
        if (other := foreign(state, self.config, self.dataset.sha256)) is not None:
            return other
        step = self.step
        wanted = {"model": step.model} | ({"model_ema": step.average.model} if step.average else {})
        for key, module in wanted.items():
            if misfit := _misfit_of(state.get(key), module.state_dict()):
                return f"it holds another net: {misfit}"
        training, needed = state.get("training"), ["optimizer", "schedule", "statistics", "interval", "errors", "best"]
        needed += ["ema_statistics"] if step.average else []
        missing = [key for key in needed if not isinstance(training, Mapping) or key not in training]
        return f"it holds no {missing[0]} of a training" if missing else None

    def _state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds. A collective: every rank calls it."""
        step, iteration = self.step, self.progress.iteration
        training = {
            "optimizer": step.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "statistics": step.statistics.gather_into_model(iteration),
            **self.progress.state_dict(),
        }
        origin = origin_of(self.config, self.dataset.sha256)
        state = {"iteration": iteration, "origin": origin, "model": step.model.state_dict(), "training": training}
        if average := step.average:
            training["ema_statistics"] = average.statistics.gather_into_model(iteration)
            state["model_ema"] = average.model.state_dict()
        if self.recomputed is not None:
            state["model_recomputed_bn"] = self.recomputed
        return state

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        step, training = self.step, state["training"]
        step.model.load_state_dict(state["model"])
        step.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        step.statistics.load_all_groups(training["statistics"])
        self.progress.load_state_dict(state["iteration"], training)
        if average := step.average:
            average.model.load_state_dict(state["model_ema"])
            average.statistics.load_all_groups(training["ema_statistics"])
            average.updates = self.progress.iteration

    def close(self) -> None:
        """Give the threads back; several runs may follow one another in one process (Ray, tests)."""
        self.step.close()

    def _collect(self) -> None:
        """Fetch the metrics of the updates since the last call. A collective: every rank calls it.

        Raises as `_record_skipped`.
        """
        fresh = self.step.take_metrics()
        sound = np.isfinite(fresh[:, 0]) & (fresh[:, 2] == 1)
        first = self.progress.iteration - len(fresh)
        for iteration, (good, loss) in enumerate(zip(sound, fresh[:, 0], strict=True), start=first):
            self.skipped = 0 if good else self.skipped + 1
            if not good:
                self._record_skipped(iteration, float(loss))
        self.progress.interval = np.concatenate([self.progress.interval, fresh[sound, :2]])

    def _record_skipped(self, iteration: int, loss: float) -> None:
        """Record a skipped update. Raises UserError where none may be skipped (on_nonfinite), or too many were."""
        record = self.config.run_folder / NONFINITE
        if self.world.is_main:
            lr, samples = self.schedule.lr(iteration), self.order.minibatch(iteration).ids.tolist()
            line = json.dumps({"iteration": iteration, "lr": lr, "loss": str(loss), "samples": samples})
            with open(record, "a+", encoding="utf-8") as file:
                file.seek(0)
                if line not in file.read().splitlines():  # a continued run repeats the updates after its checkpoint
                    file.write(line + "\n")
        if self.config.on_nonfinite == "stop" or self.skipped == SKIPPED_AT_MOST:
            raise UserError(
                f"the loss or gradient of iteration {iteration} is not a number (see {record}): nothing of it was "
                "saved; start another run with a smaller optimizer.lr or a warm-up, or go on with on_nonfinite: skip"
            )


def _misfit_of(found: Any, wanted: Mapping[str, torch.Tensor]) -> str | None:
    """The first difference in names and shapes of two state dicts; None where there is none."""
    if not isinstance(found, Mapping):
        return "it has no weights"
    for name in sorted({*found, *wanted}):
        if name not in found or name not in wanted:
            return f"it {'has' if name in found else 'lacks'} {name}"
        shapes = [list(getattr(weights[name], "shape", ())) for weights in (found, wanted)]
        if shapes[0] != shapes[1]:
            return f"its {name} is {shapes[0]}, not {shapes[1]}"
    return None
