"""ResNet-20 on CIFAR-sized images through the whole loader and step: the CUDA graph and compiling, on and off."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.gpu import folders
from bench.gpu.check import Check
from bench.gpu.nets import DRY_ARCH, device, forget
from bench.training import alone, synchronize
from pipeline.data.augment import AugmentConfig
from pipeline.data.dataset import Dataset
from pipeline.data.loader import BatchIterator, LoaderConfig, training_batches
from pipeline.data.order import Order
from pipeline.models.resnet import build
from pipeline.training.batchnorm import plan_groups
from pipeline.training.precision import images_dtype
from pipeline.training.replay import cuda_graphs
from pipeline.training.step import StepConfig, TrainingStep

BATCH, GROUP, SIDE = 128, 64, 32
PAPER = 64_000  # updates


@dataclass(frozen=True)
class Trained:
    """What a training of some updates gave. Rates are over its last three quarters."""

    weights: torch.Tensor
    images_per_second: float
    wait_share: float
    last_metrics: list[float]
    not_compiled: str | None


def run(check: Check) -> None:
    folder = check.part("images", partial(folders.lossless, check, "cifarlike", 256 if check.dry else 2000, SIDE))
    if folder is None:
        return
    dataset = Dataset(folder)
    ways = list(itertools.product((False, True), (False, True)))  # compiled, graph
    kept: dict[tuple[bool, bool], torch.Tensor | None] = {}
    torch.backends.cudnn.deterministic = True
    for compiled, graph in ways[:3:2] if check.dry else ways:
        rate = partial(dropping, at=2 if check.dry else 30)
        work = partial(train, arch(check), dataset, 4 if check.dry else 60, graph=graph, compiled=compiled, rate=rate)
        trained = check.part(f"bits, compiled {compiled}, CUDA graph {graph}", work)
        kept[compiled, graph] = trained.weights if trained else None
    for compiled in (False, True):
        one, two = kept.get((compiled, False)), kept.get((compiled, True))
        if one is not None and two is not None:
            check.note("CUDA graph against none", compiled=compiled, equal_bits=torch.equal(one, two))
    torch.backends.cudnn.deterministic = False
    for compiled, graph in ways[:1] if check.dry else ways[::-1]:
        check.part(
            f"images/s, compiled {compiled}, CUDA graph {graph}", partial(speed, check, dataset, compiled, graph)
        )
    check.part("loader alone", partial(loader_alone, check, dataset))


def arch(check: Check) -> str:
    return DRY_ARCH if check.dry else "resnet20"


def dropping(update: int, at: int) -> float:
    """Return a learning rate that drops: the recorded update must take the new one."""
    return 0.1 if update < at else 0.01


def constant(update: int) -> float:
    return 0.1


def opened(dataset: Dataset, iterations: int) -> BatchIterator:
    split, where = dataset.split("train"), device()
    augment = AugmentConfig(kind="pad-crop", crop=SIDE, pad=4, colour=0.0, short_side=(SIDE, SIDE))
    order = Order(len(split), BATCH, seed=0)
    rows, dtype = slice(0, BATCH), images_dtype("bf16", where)
    return training_batches(
        split, order, augment, dataset.statistics, rows, 0, iterations, where, LoaderConfig(threads=4), dtype=dtype
    )


def train(
    net_name: str,
    dataset: Dataset,
    iterations: int,
    *,
    graph: bool,
    compiled: bool,
    rate: Callable[[int], float] = constant,
) -> Trained:
    forget()
    where = device()
    config = StepConfig(batch=BATCH, precision="bf16", reduction="tree", compile_crop=SIDE if compiled else None)
    net = build(net_name, classes=10, generator=torch.Generator().manual_seed(0))
    world = alone(where)
    step = TrainingStep(net, config, plan_groups(BATCH, GROUP, 0, 1), world, cuda_graphs(graph, world))
    started = waited = 0.0
    first = iterations // 4
    with opened(dataset, iterations) as batches:
        for number, batch in enumerate(batches):
            step.step(batch.images, batch.labels, rate(number))
            if number == first:
                step.take_metrics()
                synchronize(where)
                started, waited = time.perf_counter(), batches.wait_seconds
        metrics = step.take_metrics()
        synchronize(where)
        took, waited = time.perf_counter() - started, batches.wait_seconds - waited
    weights = torch.cat([value.detach().float().flatten().cpu() for value in step.model.state_dict().values()])
    step.close()
    images = (iterations - first - 1) * BATCH
    return Trained(weights, images / took, waited / took, metrics[-1].tolist(), step.not_compiled)


def speed(check: Check, dataset: Dataset, compiled: bool, graph: bool) -> None:
    trained = train(arch(check), dataset, 8 if check.dry else 2000, graph=graph, compiled=compiled)
    rate = trained.images_per_second
    facts: dict[str, Any] = {"not_compiled": trained.not_compiled} if trained.not_compiled else {}
    check.note(
        "images/s",
        arch=arch(check),
        compiled=compiled,
        graph=graph,
        value=rate,
        minutes_for_64k=PAPER * BATCH / rate / 60,
        wait_share=trained.wait_share,
        last_metrics=trained.last_metrics,
        **facts,
    )


def loader_alone(check: Check, dataset: Dataset) -> None:
    count = 20 if check.dry else 1500
    with opened(dataset, 1 << 40) as batches:
        for _ in range(20):
            next(batches)
        synchronize(device())
        started = time.perf_counter()
        for _ in range(count):
            next(batches)
        synchronize(device())
        check.note("loader alone, images/s", value=count * BATCH / (time.perf_counter() - started))
