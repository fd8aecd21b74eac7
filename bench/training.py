"""Shared by the benches of training: our step, synthetic images, timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.replay import Recorder
from pipeline.training.step import StepConfig, TrainingStep

CLASSES = 1000


def alone(device: torch.device) -> World:
    """Return the world of a process that trains alone."""
    return World(rank=0, size=1, local_rank=0, local_size=1, device=device)


def our_step(
    arch: str, config: StepConfig, bn_group: int, world: World, recorder: Recorder | None = None
) -> TrainingStep:
    """Return the step of `pipeline.train` on a random net with torchvision's multiply-adds (v1.5 stride, B shortcuts)."""
    net = build(arch, classes=CLASSES, shortcut="B", stride="v1.5", generator=torch.Generator().manual_seed(0))
    plan = plan_groups(config.batch, bn_group, world.rank, world.size)
    return TrainingStep(net, config, plan, world, recorder)


def synthetic(
    rows: int, crop: int, device: torch.device, dtype: torch.dtype = torch.float32, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    """Return images [rows, crop, crop, 3] and labels int64 [rows], like those of the loader."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, crop, crop, 3, generator=generator).to(device, dtype)
    return images, torch.randint(classes, (rows,), generator=generator).to(device)


def seconds(call: Callable[[], Any], times: int, device: torch.device) -> float:
    """Return the mean seconds of `times` calls in a row, with the device's work."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
