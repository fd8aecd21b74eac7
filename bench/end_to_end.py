"""Measures how much slower a whole training is than its parts: real against synthetic data, full stack, checkpoints.

data: training on JPEG shards against the slower of the loader alone and the step alone.
stack: launch/local.py with tracking and checkpoints against a bare loop over the same loader and step, update by update.
checkpoint: how long a save delays the next update, against an update.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics as averages
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.loader import shard_samples  # noqa: E402
from bench.training import alone, our_step, seconds, synchronize, synthetic  # noqa: E402
from launch.local import rank_environment, reserve_port  # noqa: E402
from launch.ranks.supervisor import supervise  # noqa: E402
from pipeline import train  # noqa: E402
from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.cores import available_cores  # noqa: E402
from pipeline.base.layout import CHECKPOINTS  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.data.loader import Batch, BatchIterator, LoaderConfig  # noqa: E402
from pipeline.loop.trainer import Trainer  # noqa: E402
from pipeline.process import gpus  # noqa: E402
from pipeline.process.world import World, set_threads  # noqa: E402
from pipeline.run.config import Config, to_yaml  # noqa: E402
from pipeline.run.options import load  # noqa: E402
from pipeline.tracking import TrackingConfig  # noqa: E402
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints  # noqa: E402
from pipeline.training.optimizer import OptimizerConfig  # noqa: E402
from pipeline.training.schedule import ScheduleConfig  # noqa: E402
from pipeline.training.step import StepConfig  # noqa: E402

PARTS = ("data", "stack", "checkpoint")
COPIES = 2  # of each of the 140 sample images
FILL = 6  # updates before the clock starts, in which the loader's queues empty or fill to their steady state
STALL_EVERY = 5  # updates from one checkpoint to the next


def config_of(options: argparse.Namespace, data: Path, folder: Path) -> Config:
    """Return the paper's recipe with this bench's sizes."""
    return Config(
        arch=options.arch,
        data=str(data),
        runs=str(folder / "runs"),
        batch=options.batch,
        bn_group=min(32, options.batch),
        iterations=options.updates + FILL,
        precision="bf16",
        threads=options.threads,
        recompute_bn_images=0,
        loader=LoaderConfig(threads=options.loader_threads),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(kind="steps", steps=(1_000_000,)),
        checkpoint=CheckpointConfig(every=options.checkpoint_every),
        tracking=TrackingConfig(log_every=options.log_every),
    )


@contextmanager
def trainer_of(config: Config) -> Iterator[Trainer]:
    world = alone(gpus.take("auto", 0))
    set_threads(world, config.threads)
    with closing(Trainer(config, Dataset(config.data), world)) as trainer:
        yield trainer


def synthetic_of(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a synthetic batch like those of the trainer's loader."""
    config, step = trainer.config, trainer.step
    return synthetic(config.batch, config.augment.crop, step.world.device, step.images_dtype, trainer.dataset.classes)


def clocked(update: Callable[[], Any], fill: int, count: int, device: torch.device) -> float:
    """Return the mean seconds of `count` updates, after `fill` untimed ones."""
    for _ in range(fill):
        update()
    return seconds(update, count, device)


def measure_data(config: Config, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return images/s of the loader alone, the step alone and both, one value per round; they take turns in a round."""
    rates: dict[str, list[float]] = {"loader alone": [], "step alone": [], "both": []}
    endless = replace(config, iterations=1 << 40)
    with (
        trainer_of(endless) as trainer,
        trainer.batches() as batches,
        Progress(options.rounds * 3, "data", "runs") as bar,
    ):
        images, labels = synthetic_of(trainer)

        def both() -> None:
            batch = next(batches)
            trainer.update(batch.images, batch.labels)

        updates: dict[str, Callable[[], Any]] = {
            "loader alone": lambda: next(batches),
            "step alone": lambda: trainer.update(images, labels),
            "both": both,
        }
        for _ in range(options.rounds):
            for name, update in updates.items():
                seconds_per_update = clocked(update, FILL, options.updates, trainer.world.device)
                trainer.step.take_metrics()
                rates[name].append(config.batch / seconds_per_update)
                bar.advance(now=f"{name}: {rates[name][-1]:,.1f} images/s")
    return rates


class Moment(NamedTuple):
    """Wall-clock seconds, and CPU seconds of all threads of this process."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: Moment) -> Moment:
        return Moment(self.wall - earlier.wall, self.cpu - earlier.cpu)


class Alternating(Trainer):
    """A Trainer between whose updates a bare loop makes updates of its own, with loader and step alone.

    `times`: wall-clock and CPU seconds of each update of the full stack, with everything that `pipeline.train` does for it,
    and of the nearest bare update. No bare update runs while a checkpoint is written, so that the full stack alone bears
    what the writing costs.
    """

    def __init__(
        self, config: Config, dataset: Dataset, world: World, initial: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        super().__init__(config, dataset, world, initial)
        assert isinstance(config.bn_group, int)
        bare = StepConfig(batch=config.batch, precision=config.precision, reduction="allreduce")
        self.bare = our_step(config.arch, bare, config.bn_group, world)
        self.times: list[tuple[Moment, Moment]] = []

    def batches(self, count: int | None = None) -> Any:
        return Turns(self, super().batches(2 * self.config.iterations), self.config.iterations)

    def close(self) -> None:
        super().close()
        self.bare.close()
        full, bare = zip(*self.times[FILL:], strict=True)
        figures = {"full": [moment.wall for moment in full], "bare": [moment.wall for moment in bare]}
        figures |= {"full, CPU": [moment.cpu for moment in full], "bare, CPU": [moment.cpu for moment in bare]}
        Path(self.config.runs, "times.json").write_text(json.dumps(figures), encoding="utf-8")


class Turns(Iterator[Batch]):
    """The batches of the full stack; times what happens between two of them."""

    def __init__(self, trainer: Alternating, batches: BatchIterator, count: int) -> None:
        self.trainer, self.batches, self.left = trainer, batches, count
        self.started: Moment | None = None
        self.last_bare = Moment(0.0, 0.0)

    wait_seconds = property(lambda self: self.batches.wait_seconds)
    substituted = property(lambda self: self.batches.substituted)

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *error: object) -> None:
        self.batches.close()

    def __next__(self) -> Batch:
        device = self.trainer.world.device
        synchronize(device)
        if self.started:
            full = Moment.now() - self.started
            if not writing():
                started = Moment.now()
                batch = next(self.batches)
                self.trainer.bare.step(batch.images, batch.labels, 1e-3)
                synchronize(device)
                self.last_bare = Moment.now() - started
                self.trainer.bare.take_metrics()
            self.trainer.times.append((full, self.last_bare))
        if not self.left:
            raise StopIteration
        self.left -= 1
        self.started = Moment.now()
        return next(self.batches)


def writing() -> bool:
    """Return whether a checkpoint is being written."""
    return any(thread.name == "checkpoint" for thread in threading.enumerate())


def stack_worker(file: Path) -> None:
    """Run the only rank: `pipeline.train.train` unchanged, with a trainer that takes turns with the bare loop."""
    train.Trainer = Alternating  # type: ignore[misc]
    train.train(load(file))


def measure_stack(config: Config, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of updates of the full stack under launch/local.py's supervisor, and of the bare updates."""
    file = Path(config.runs).with_suffix(".yaml")
    # The loader makes batches for both; each takes every other batch.
    file.write_text(
        to_yaml(replace(config, iterations=FILL + options.rounds * options.updates, name="stack")), encoding="utf-8"
    )
    command = [sys.executable, str(Path(__file__)), "--worker", str(file)]
    with reserve_port() as port:
        code = supervise([command], [rank_environment(0, 1, port)])
    if code:
        raise UserError(f"the training ended with exit code {code}")
    return json.loads(Path(config.runs, "times.json").read_text(encoding="utf-8"))


def measure_checkpoint(config: Config, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return medians in seconds: an update without a checkpoint; the stall by `save`; how much it slows later updates."""
    stalls, afterwards, updates = [], [], []
    with trainer_of(config) as trainer:
        checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint)
        images, labels = synthetic_of(trainer)

        def update() -> float:
            started = time.perf_counter()
            trainer.update(images, labels)
            synchronize(trainer.world.device)
            return time.perf_counter() - started

        for _ in range(FILL):
            update()
        for _ in range(options.rounds + 1):
            updates += [update() for _ in range(STALL_EVERY)]
            started = time.perf_counter()
            trainer.save(checkpoints)
            stalls.append(time.perf_counter() - started)
            during = []
            while writing():
                during.append(update())
            checkpoints.wait()
            afterwards.append(sum(during) - len(during) * averages.median(updates))
    # The first save also allocates what the later ones reuse.
    figures = {"update": updates, "stall": stalls[1:], "slowed": afterwards[1:]}
    return {name: averages.median(values) for name, values in figures.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/end_to_end.py\n  python bench/end_to_end.py data/imagenet --batch 256 --parts data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="?", type=Path, help="dataset folder (default: the 140 sample images)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="default: data stack checkpoint"
    )
    parser.add_argument("--arch", default="resnet50" if gpu else "resnet18", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=256 if gpu else 8, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the step (default 1)")
    cores = available_cores() if gpu else 1
    parser.add_argument("--loader-threads", type=int, default=cores, help="threads that decode (default %(default)s)")
    # On an H100 these take about 2.5 minutes, calculated: 3 rounds of 3 x 46 updates of 0.1 s, 252 in the full stack, start-up.
    parser.add_argument("--rounds", type=int, default=3 if gpu else 5, help="default %(default)s")
    parser.add_argument("--updates", type=int, default=40 if gpu else 8, help="per round (default %(default)s)")
    parser.add_argument("--full", action="store_true", help="5 rounds of 100 updates")
    parser.add_argument(
        "--log-every", type=int, default=20 if gpu else 4, help="the recipe has 100 (default %(default)s)"
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=50 if gpu else 10, help="the recipe has 5000 (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.full:
        options.rounds, options.updates = 5, 100
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.worker:
        stack_worker(options.worker)
        return
    rows: list[tuple[str, str, str]] = []
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="bench-end-to-end-") as name:
        folder = Path(name)
        config = config_of(options, options.dataset or shard_samples(folder, COPIES), folder)
        if "data" in options.parts:
            rates = measure_data(config, options)
            rows += [(name, f"{averages.median(values):,.1f} images/s", "") for name, values in rates.items()]
            rounds = zip(rates["loader alone"], rates["step alone"], rates["both"], strict=True)
            ratio = averages.median(both / min(loader, step) for loader, step, both in rounds)
            rows.append(("both / the slower alone", "", f"{ratio:.3f}"))
            figures["data"] = {"ratio": ratio, **rates}
        if "stack" in options.parts:
            stack = measure_stack(config, options)
            sums = {name: sum(times) for name, times in stack.items()}
            rows += [
                (f"{name}, an update", f"{1000 * averages.median(times):,.0f} ms", "") for name, times in stack.items()
            ]
            ratios = {"ratio": sums["bare"] / sums["full"], "cpu_ratio": sums["bare, CPU"] / sums["full, CPU"]}
            rows.append(("full stack / bare loop, by all updates", "", f"{ratios['ratio']:.3f}"))
            rows.append(("the same in CPU time", "", f"{ratios['cpu_ratio']:.3f}"))
            figures["stack"] = {**ratios, **stack}
        if "checkpoint" in options.parts:
            times = measure_checkpoint(config, options, folder)
            rows += [(f"checkpoint: {name}", f"{1000 * seconds:,.0f} ms", "") for name, seconds in times.items()]
            rows.append(("stall / update", "", f"{times['stall'] / times['update']:.3f}"))
            rows.append(
                ("stall and slower updates / update", "", f"{(times['stall'] + times['slowed']) / times['update']:.3f}")
            )
            figures["checkpoint"] = times
    threads = f"{options.threads} + {options.loader_threads} threads"
    title = f"{options.arch} bf16, batch {options.batch}, {threads} (step + loader), {options.rounds} rounds"
    print_table(title, ("what", "median", "ratio"), rows)
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    run(main)
