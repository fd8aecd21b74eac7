"""What compiling costs and gives, from a cold cache: `compile_by` net and stages, by the threads that the step chose.

How many graphs are compiled for the loader's images counts too: bf16 images must not compile a second one.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial

import torch._inductor.config

from bench.gpu.check import Check
from bench.gpu.nets import DRY_ARCH, Nets
from bench.gpu.stages.step import GROUP


def run(check: Check) -> None:
    nets, rows = (Nets(check, DRY_ARCH, 32), 4) if check.dry else (Nets(check, "resnet50", 224), 32)
    for compile_by in ("net", "stages"):
        with tempfile.TemporaryDirectory(dir=check.work) as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            what = f"ours compiled, compile_by {compile_by}, cold cache"
            nets.measure(what, rows, partial(nets.ours, rows, GROUP, compiled=True, compile_by=compile_by))
    check.note(
        "compiler threads",
        value=torch._inductor.config.compile_threads,
        asked=os.environ.get("TORCHINDUCTOR_COMPILE_THREADS"),
        cores=len(os.sched_getaffinity(0)),
    )
