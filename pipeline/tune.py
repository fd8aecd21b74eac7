"""Find the loader's fastest settings for this machine: python -m pipeline.tune DATASET

What is found is stored for this kind of device and this number of cores (pipeline/data/tuned.py). Trainings and evaluations on
such a machine take it where their config has null.
"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.tuning import tune_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("tuning the loader for", "this machine")
    answer(tune_options)

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.base import command
from pipeline.base.checkout import RECIPE, configs
from pipeline.base.command import UserError
from pipeline.base.tables import print_json, print_table
from pipeline.data import tuned
from pipeline.data.batch import Queues
from pipeline.data.dataset import Dataset, Split
from pipeline.data.decoders import RUNGS, Rung
from pipeline.data.loader import training_batches
from pipeline.data.memory import fits_in_memory
from pipeline.data.order import Order
from pipeline.data.plans import training_plan
from pipeline.data.probe import Probe, trial_of
from pipeline.data.search import Axis, Found, Search, Setting
from pipeline.data.storage import open_dataset
from pipeline.data.tuned import Machine, Tuned
from pipeline.process.gpus import is_exclusive
from pipeline.process.world import open_world
from pipeline.run.config import Config
from pipeline.run.options import load
from pipeline.training.precision import images_dtype

ADVISED_GAIN = 1.05  # of the hardware decoder, at least, to be spoken of
HARDWARE_TURNS = 2  # measurements with the hardware decoder, and as many without
WARM_UP = 2  # batches of a measurement that come before its clock starts
TIMED = 3  # batches at least that its clock sees, and as many as fill
SLICE_SECONDS = 0.3
CORE_ROWS = 8  # images of a batch for each core at most, where the CPU decodes: a measurement is to be short
# Searched after the way to decode and the number of threads.
DEPTHS: tuple[Axis, ...] = (
    [{"decode_ahead": batches} for batches in (1, 2, 3, 4)],
    [{"read_threads": threads} for threads in (4, 16, 64)],
    [{"read_ahead": batches} for batches in (1, 2, 4, 8)],
    [{"ready": batches} for batches in (2, 4)],
)


@dataclass
class Speed:
    """Measures the loader: images/s that an idle consumer gets of batches that no other measurement had, so of cold images.

    rows: images of a batch. cpu_rows: images of a batch where the CPU decodes. taken: images of the batches so far.
    """

    split: Split
    dataset: Dataset
    config: Config
    device: torch.device
    rows: int
    cpu_rows: int
    taken: int = 0

    def __call__(self, setting: Setting) -> float:
        loader = replace(self.config.loader, **setting)
        rows = self.cpu_rows if setting["decode_on"] == "cpu" else self.rows
        order = Order(len(self.split), rows, self.config.seed, self.config.shuffle_block)
        augment = replace(self.config.augment, stages=())
        start = -(-self.taken // rows)
        with training_batches(
            self.split,
            order,
            augment,
            self.dataset.statistics,
            slice(0, rows),
            start,
            sys.maxsize,
            self.device,
            loader,
            dtype=images_dtype(self.config.precision, self.device),
        ) as batches:
            for _ in range(WARM_UP):
                next(batches)
            self._settle()
            began, images = time.perf_counter(), 0
            while images < TIMED * rows or time.perf_counter() - began < SLICE_SECONDS:
                images += len(next(batches).ids)
            self._settle()
            rate = images / (time.perf_counter() - began)
        self.taken = (start + WARM_UP) * rows + images
        return rate

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the next batch's arrival, in the consumer's order


def main(argv: Sequence[str] | None = None) -> int:
    args = tune_options().parse_args(argv)
    with open_world(args.device) as world:
        device = world.device
        ranks = args.ranks or (torch.cuda.device_count() if device.type == "cuda" else 1)
        machine = Machine.of(device, ranks)
        if is_exclusive(device):
            raise UserError(
                f"{machine.device} is in compute mode EXCLUSIVE_PROCESS, so no child process can try its decoders: "
                "have it set by nvidia-smi --compute-mode=DEFAULT, or give --device cpu"
            )
        speed = speed_of(args, device, ranks)
        with only(machine.cores):
            rungs = working_rungs(speed, Probe())
            print(
                f"measuring {args.dataset} for {args.seconds:g} s on {machine.device}, {machine.cores} cores a rank",
                file=sys.stderr,
            )
            found, start = search(speed, rungs, machine.cores, args.seconds)
            best = tuned_by(found, machine)
            file = tuned.store(best)  # first: the hardware decoder was not tried in a child, and may end this process
            gain = hardware_gain(speed, found.setting)
    print_result(best, start, found, file, args, gain)
    return 0


@contextmanager
def only(cores: int) -> Iterator[None]:
    """Use as many cores as a rank will have, so that the measurement does not borrow the other ranks'."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def speed_of(args: Namespace, device: torch.device, ranks: int) -> Speed:
    """What measures a setting. Raises UserError where there is nothing to measure."""
    config = load(args.config or configs() / RECIPE)
    dataset = open_dataset(args.dataset)
    split = dataset.split("train")
    if config.augment.kind == "pad-crop" and fits_in_memory(split, config.augment.crop, config.loader):
        raise UserError(
            f"the images of {args.dataset} are decoded once and kept in memory (loader.in_memory_mb): there is nothing to tune"
        )
    rows = args.batch or max(1, config.batch // ranks)
    cpu_rows = args.batch or min(rows, CORE_ROWS * Machine.of(device, ranks).cores)
    return Speed(split, dataset, config, device, rows, cpu_rows)


def working_rungs(speed: Speed, probe: Probe) -> tuple[Rung, ...]:
    """The rungs that decode the dataset's images, tried in processes that may crash. Raises UserError if there is none."""
    if speed.device.type == "cpu":
        return ("cpu",)
    config = replace(speed.config.loader, hw_decoder_load=0.0, decode_on="auto")
    augment = replace(speed.config.augment, stages=())
    plan = training_plan(speed.split, speed.config.seed, augment, speed.dataset.statistics, speed.rows)
    trial = trial_of(plan.stream, plan.graph(config, speed.device))
    print("trying the decoders, before the clock starts", file=sys.stderr)
    faults = probe.faults([trial], speed.device, RUNGS)
    for rung, fault in faults.items():
        if fault is not None:
            print(f"{rung} is left out: {fault}", file=sys.stderr)
    if not (working := tuple(rung for rung, fault in faults.items() if fault is None)):
        raise UserError("no decoder works on this machine: install the packages anew (make setup)")
    return working


def search(speed: Speed, rungs: Sequence[Rung], cores: int, budget: float) -> tuple[Found, Setting]:
    """The fastest setting found within `budget` seconds from now, and the built-in one."""
    start, axes = space(rungs, cores)
    ends = time.monotonic() + budget
    return Search(speed, lambda: (ends - time.monotonic()) / budget).find(axes, start), start


def space(rungs: Sequence[Rung], cores: int) -> tuple[dict[str, Any], list[Axis]]:
    """(built-in setting, axes of the search): how to decode, threads, depths.

    How to decode and how many threads decide each other's best. As one axis they would be 12 settings on a GPU, of which one
    round takes a third of the time there; so they are two, and the search comes back to the first while it has time.
    """
    threads = sorted({max(1, cores // 4), max(1, cores // 2), cores, cores + cores // 2})
    # Without the hardware decoder, with which pixels may depend on the batch: see `hardware_gain`.
    ways: list[dict[str, Any]] = [{"decode_on": rung} for rung in rungs]
    start = {**ways[0], **asdict(Queues(threads=cores))}
    return start, [ways, [{"threads": count} for count in threads], *DEPTHS]


def hardware_gain(speed: Callable[[Setting], float], setting: Setting) -> float | None:
    """How many times as fast `setting` is with the GPU's hardware JPEG decoder; None where that fails, or the CPU decodes."""
    if setting["decode_on"] == "cpu":
        return None
    rates: dict[float, list[float]] = {0.0: [], 1.0: []}
    try:
        for _ in range(HARDWARE_TURNS):
            for share, measured in rates.items():
                measured.append(speed({**setting, "hw_decoder_load": share}))
    except UserError as error:
        print(f"the hardware JPEG decoder is left out: {error}", file=sys.stderr)
        return None
    return sum(rates[1.0]) / sum(rates[0.0])


def tuned_by(found: Found, machine: Machine) -> Tuned:
    setting = found.setting
    return Tuned(
        machine=machine,
        decode_on=setting["decode_on"],
        queues=Queues(**{key.name: setting[key.name] for key in fields(Queues)}),
        images_per_second=round(found.speed, 1),
        untuned_images_per_second=round(found.start_speed, 1),
        measured=tuned.today(),
    )


def print_result(best: Tuned, start: Setting, found: Found, file: Path, args: Namespace, gain: float | None) -> None:
    """Print built-in and found settings and, on request, the figures. gain: see `hardware_gain`."""
    rates = {"images/s": (f"{best.untuned_images_per_second:,.1f}", f"{best.images_per_second:,.1f}")}
    rows = [(key, start[key], found.setting[key]) for key in start]
    title = f"{best.machine.device}, {best.machine.cores} cores a rank, {found.measurements} measurements"
    print_table(title, ("loader", "built-in", "found"), [*rows, *((key, *pair) for key, pair in rates.items())])
    print(f"Stored in {file}: loaders of such machines take it where their config has null.")
    if gain is not None and gain >= ADVISED_GAIN:
        print(
            f"The GPU's hardware JPEG decoder is {gain:.2f} times as fast: set loader.hw_decoder_load to 1 to use it, where a "
            "pixel's last grey level may depend on the number of ranks in rare cases."
        )
    if args.json:
        print_json({**asdict(best), "hardware_gain": gain, "measurements": found.measurements, "file": str(file)})


if __name__ == "__main__":
    command.run(main, kept=True)
