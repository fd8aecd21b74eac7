"""ResNet-50 on synthetic images: our step against torchvision's and timm's nets, and at the rows of 8 and 32 GPUs.

The ways that compile nothing come first: they take seconds each, and a compilation up to a minute.
"""

from __future__ import annotations

from functools import partial

import torch

from bench.gpu.check import Check
from bench.gpu.nets import DRY_ARCH, Nets

GROUP = 32  # images of a normalization group, as in the recipe
COMPILES = 45.0  # seconds that a new net or shape takes to compile on the 16 cores beside an H100: a guess
LOADS = 20.0  # the same for what Inductor's cache has


def run(check: Check) -> None:
    nets, large = (Nets(check, DRY_ARCH, 32), 8) if check.dry else (Nets(check, "resnet50", 224), 256)
    small, smaller = (4, 2) if check.dry else (32, 8)  # rows of a rank: the paper's 256 on 8 and on 32 GPUs
    compiled = partial(nets.ours, group=GROUP, compiled=True)
    nets.measure("torchvision AMP NCHW eager", large, partial(nets.plain, large))
    nets.measure("ours eager", large, partial(nets.ours, large, GROUP), group=GROUP)
    for rows in (small, smaller):
        nets.measure("ours eager", rows, partial(nets.ours, rows, GROUP))
        nets.measure("ours CUDA graph", rows, partial(nets.ours, rows, GROUP, graph=True), gpu=True)
    nets.measure("ours compiled", small, partial(compiled, small), seconds=LOADS)
    nets.measure("ours compiled", large, partial(compiled, large), group=GROUP, seconds=LOADS)
    # As configs/imagenet.yaml, for ranks whose gradients travel early
    by_stages = partial(compiled, compile_by="stages")
    nets.measure("ours compiled, compile_by stages", small, partial(by_stages, small), seconds=COMPILES)
    nets.measure(
        "ours compiled, compile_by stages", large, partial(by_stages, large), gpu=True, group=GROUP, seconds=LOADS
    )
    nets.measure("ours compiled, CUDA graph", small, partial(compiled, small, graph=True), gpu=True, seconds=LOADS)
    nets.profile("ours compiled", small, partial(compiled, small))
    nets.profile("ours compiled", large, partial(compiled, large))
    nets.measure("ours compiled, one group", large, partial(nets.ours, large, large, compiled=True), seconds=COMPILES)
    of_others = partial(nets.plain, large, channels_last=True, compiled=True)
    timm = partial(of_others, source="timm")
    nets.measure("timm AMP channels_last compiled", large, timm, seconds=COMPILES)
    without_compiling(nets, large)
    nets.profile("ours eager", small, partial(nets.ours, small, GROUP))
    nets.measure("torchvision AMP channels_last compiled", large, of_others, seconds=COMPILES)
    # On a CPU these would take minutes, for code that the lines above have run.
    nets.measure("ours compiled", smaller, partial(compiled, smaller), gpu=True, seconds=COMPILES)
    nets.measure("ours compiled, CUDA graph", smaller, partial(compiled, smaller, graph=True), gpu=True, seconds=LOADS)


def without_compiling(nets: Nets, large: int) -> None:
    """Measure what else decides the speed of eager ways: memory format, groups, rows, cuDNN's choice of algorithms."""
    nets.measure("torchvision AMP channels_last eager", large, partial(nets.plain, large, channels_last=True))
    for rows in (large, large // 2, large // 4, large * 2):
        nets.measure("ours eager, one group", rows, partial(nets.ours, rows, rows), seconds=8)
    torch.backends.cudnn.benchmark = True  # as the config's `cudnn_benchmark: true`
    try:
        nets.measure("ours eager, cudnn_benchmark", large, partial(nets.ours, large, GROUP), group=GROUP, seconds=8)
        nets.measure("ours eager, one group, cudnn_benchmark", large, partial(nets.ours, large, large), seconds=8)
    finally:
        torch.backends.cudnn.benchmark = False
