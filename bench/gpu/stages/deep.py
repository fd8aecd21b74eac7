"""The two deepest nets of Table 4 on synthetic images."""

from __future__ import annotations

from functools import partial

from bench.gpu.check import Check
from bench.gpu.nets import DRY_ARCH, Nets
from bench.gpu.stages.step import COMPILES, GROUP


def run(check: Check) -> None:
    rows = 4 if check.dry else 256
    for arch in (DRY_ARCH,) if check.dry else ("resnet152", "resnet101"):
        nets = Nets(check, arch, 32 if check.dry else 224)
        ours = partial(nets.ours, rows)
        nets.measure("torchvision AMP NCHW eager", rows, partial(nets.plain, rows))
        nets.measure("ours eager", rows, partial(ours, GROUP), group=GROUP)
        # A CPU would compile these nets for many minutes; stage `compiling` runs the same code.
        nets.measure("ours compiled", rows, partial(ours, GROUP, compiled=True), group=GROUP, gpu=True)
        stages = partial(ours, GROUP, compiled=True, compile_by="stages")
        nets.measure("ours compiled, compile_by stages", rows, stages, group=GROUP, gpu=True, seconds=COMPILES)
        one_group = partial(ours, rows, compiled=True)
        nets.measure("ours compiled, one group", rows, one_group, gpu=True, seconds=COMPILES)
