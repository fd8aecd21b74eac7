"""JPEG shards to updates with ResNet-50 against the loader and the step alone; what a checkpoint stalls."""

from __future__ import annotations

import statistics
import tempfile
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import end_to_end as bench
from bench.gpu import folders
from bench.gpu.check import Check
from pipeline.run.config import Config

CASES: dict[str, dict[str, Any]] = {
    "compiled, one group": {"compile": True, "compile_by": "stages", "bn_group": "rank"},
    "compiled": {"compile": True, "compile_by": "stages"},
    "eager": {},
}


def run(check: Check) -> None:
    if check.part("sample images", partial(folders.samples, check)) is None:
        return
    rungs = ["gpu", "gpu-whole", "cpu"] if check.gpu else ["cpu"]
    for title in ("eager",) if check.dry else CASES:
        # The first rung that works, here and in the cases that follow: apart, since a decoder may crash.
        while rungs and not check.apart(
            {f"{title}, decode_on {rungs[0]}": partial(measure, title=title, rung=rungs[0])}, 60
        ):
            rungs.pop(0)
    check.apart({"checkpoint": checkpoint}, 45)


def asked(check: Check) -> Namespace:
    small = ["--rounds", "1", "--updates", "2", "--arch", "resnet18", "--batch", "8"]
    return bench.parse([str(folders.samples(check)), *(small if check.dry else ["--rounds", "2", "--updates", "40"])])


def measure(check: Check, *, title: str, rung: str) -> None:
    options = asked(check)
    decoding: dict[str, Any] = {"decode_on": rung}
    with tempfile.TemporaryDirectory(dir=check.work) as name:
        config: Config = replace(bench.config_of(options, options.dataset, Path(name)), **CASES[title])
        config = replace(config, loader=replace(config.loader, **decoding))
        found = bench.measure_data(config, options)
    medians = {key: statistics.median(rates) for key, rates in found.items()}
    ratio = medians["both"] / min(medians["loader alone"], medians["step alone"])
    check.note("images/s", case=title, decode_on=rung, ratio=ratio, **medians)


def checkpoint(check: Check) -> None:
    options = asked(check)
    with tempfile.TemporaryDirectory(dir=check.work) as name:
        config = bench.config_of(options, options.dataset, Path(name))
        found = bench.measure_checkpoint(config, options, Path(name))
    check.note("checkpoint, seconds", **found, stall_share=found["stall"] / found["update"])
