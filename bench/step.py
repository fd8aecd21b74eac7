"""Compares our training step with fp32 NCHW eager and with torchvision's net under plain AMP, and shows what limits it.

The rate of this device is stored for the plan of launch/slurm.py --dry-run (configs/rates.yaml).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics as averages
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.limits import bf16_peak, flops_per_image, operators  # noqa: E402
from bench.training import CLASSES, alone, our_step, seconds, synthetic  # noqa: E402
from launch.forecast import rates  # noqa: E402
from pipeline.base.command import run  # noqa: E402
from pipeline.base.cores import available_cores  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.models.resnet import build  # noqa: E402
from pipeline.process import gpus  # noqa: E402
from pipeline.training.replay import WARM_UP, Recorder, cuda_graphs  # noqa: E402
from pipeline.training.step import StepConfig, TrainingStep  # noqa: E402

BUDGET = 240.0  # seconds with a GPU; torch's import and what follows the measurements come on top
FP32, AMP = "torchvision fp32 NCHW eager", "torchvision AMP bf16 NCHW"
ONE_GRAPH = "ours bf16, compiled as one graph"
SGD: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


@dataclass
class Way:
    """One way to train: `update` makes one update; `rate` collects images/s, one value per round; `step` if it is ours."""

    update: Callable[[], Any]
    finish: Callable[[], Any] = lambda: None
    step: TrainingStep | None = None
    precision: str = ""
    rate: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # CPU seconds of this process per image
    memory: float = 0.0  # peak bytes, with weights and optimizer; 0 on the CPU


def plain(arch: str, batch: int, crop: int, device: torch.device, amp: bool) -> Way:
    """Return torchvision's net in NCHW, in the loop that its users write."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(arch, weights=None).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images, labels = synthetic(batch, crop, device)
    images = images.permute(0, 3, 1, 2).contiguous()

    def update() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()

    return Way(update)


def ours(
    arch: str, config: StepConfig, crop: int, device: torch.device, bn_group: int, recorder: Recorder | None = None
) -> Way:
    """Return the step of `pipeline.train`, whose metrics are fetched as at its log points."""
    step = our_step(arch, config, bn_group, alone(device), recorder)
    images, labels = synthetic(config.batch, crop, device, step.images_dtype)
    return Way(lambda: step.step(images, labels, 1e-3), step.take_metrics, step, config.precision)


def makers(options: argparse.Namespace, batch: int, device: torch.device) -> dict[str, Callable[[], Way]]:
    arch, crop, group = options.arch, options.crop, min(options.bn_group, batch)
    float32 = StepConfig(batch=batch, reduction="allreduce")
    bf16 = replace(float32, precision="bf16")
    compiled = replace(bf16, compile_crop=crop)
    ways: dict[str, Callable[[], Way]] = {
        FP32: lambda: plain(arch, batch, crop, device, amp=False),
        AMP: lambda: plain(arch, batch, crop, device, amp=True),
        "ours float32": lambda: ours(arch, float32, crop, device, group),
        "ours bf16": lambda: ours(arch, bf16, crop, device, group),
    }
    if group < batch:
        ways["ours bf16, one BN group"] = lambda: ours(arch, bf16, crop, device, batch)
    if options.compile:
        by_stages = replace(compiled, compile_by="stages")  # as in configs/imagenet.yaml
        ways["ours bf16, compiled"] = lambda: ours(arch, by_stages, crop, device, group)
    if options.compile_net:
        one_graph = replace(compiled, compile_by="net")
        ways[ONE_GRAPH] = lambda: ours(arch, one_graph, crop, device, group)
    if recorder := cuda_graphs(True, alone(device)):
        ways["ours bf16, CUDA graph"] = lambda: ours(arch, bf16, crop, device, group, recorder)
    return ways


def measure(options: argparse.Namespace, batch: int, device: torch.device, ends: float) -> dict[str, Way]:
    """Measure images/s of each way, one value per round; the ways take turns in a round.

    ends: when to stop, by `time.monotonic`. At least one way is made, and one round.
    """
    makers_by_name = makers(options, batch, device)
    ways: dict[str, Way] = {}
    started = time.monotonic()
    with Progress((options.rounds + 1) * len(makers_by_name), f"batch {batch}", "runs") as progress:
        for name, make in makers_by_name.items():  # the first updates of each way are not timed
            if ways and time.monotonic() > ends - (ends - started) / 3:
                print(f"batch {batch}, {name}: left out, no time left (--full)", file=sys.stderr)
                continue
            before, way = allocated(device), None
            try:
                way = make()
                # Compiling and recording a CUDA graph come before the clock, too.
                seconds(way.update, max(options.warm_up, WARM_UP + 1 if recorded(name) else 1), device)
            except torch.OutOfMemoryError:
                print(f"batch {batch}, {name}: does not fit into the device's memory", file=sys.stderr)
                way = None
                continue
            way.memory, ways[name] = allocated(device) - before, way
            progress.advance()
        took = 0.0
        for number in range(options.rounds):
            began = time.monotonic()
            if number and began + took > ends:
                print(f"batch {batch}: {number} of {options.rounds} rounds, no time left (--full)", file=sys.stderr)
                break
            for name, way in ways.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                before, cpu = allocated(device), time.process_time()
                way.rate.append(batch / seconds(way.update, options.updates, device))
                way.cpu.append((time.process_time() - cpu) / options.updates / batch)
                way.finish()
                if device.type == "cuda" and len(way.rate) == 1:
                    way.memory += torch.cuda.max_memory_allocated(device) - before
                progress.advance(now=f"{name}: {way.rate[-1]:,.1f} images/s")
            took = time.monotonic() - began
    return ways


def recorded(name: str) -> bool:
    """Return whether the way of this name is replayed as a CUDA graph."""
    return "CUDA graph" in name


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def sgd_milliseconds(arch: str, rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median ms of an update of torch.optim.SGD (momentum, weight decay) by implementation, interleaved."""
    optimizers = {}
    for name, switch in SGD.items():
        net = build(arch, classes=CLASSES).to(device).to(memory_format=torch.channels_last)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers[name] = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, **switch)
        optimizers[name].step()
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(4 * rounds):
        for name, optimizer in optimizers.items():
            times[name].append(1000 * seconds(optimizer.step, 3, device))
    return {name: averages.median(values) for name, values in times.items()}


def show(options: argparse.Namespace, batch: int, ways: dict[str, Way], device: torch.device) -> dict[str, Any]:
    """Print the table of one batch size; return its figures."""
    peak, flops = bf16_peak(rates.device_name(device)), flops_per_image(options.arch, options.crop)
    rows, figures = [], {}
    for name, way in ways.items():
        rate = averages.median(way.rate)
        # The median over rounds of the ratio within a round, because a busy machine slows neighbours alike.
        ratio = {
            opponent: averages.median(a / b for a, b in zip(way.rate, ways[opponent].rate, strict=True))
            for opponent in (FP32, AMP)
            if opponent in ways
        }
        share = rate * flops / peak if peak else None
        cpu = averages.median(way.cpu)
        figures[name] = {"images_per_second": rate, "ratios": ratio, "cpu_seconds_per_image": cpu}
        figures[name] |= {"memory_gb": way.memory / 1e9, "peak_share": share}
        spread = f"{min(way.rate):,.1f} to {max(way.rate):,.1f}"
        cells = [f"{ratio[opponent]:.2f}" if opponent in ratio else "" for opponent in (FP32, AMP)]
        gpu = [f"{way.memory / 1e9:.1f}", f"{100 * share:.1f}%" if share else ""]
        rows.append((name, f"{rate:,.1f}", spread, *cells, *(gpu if device.type == "cuda" else [f"{1000 * cpu:,.0f}"])))
    columns = ["way", "images/s, median", "range", "/ fp32 NCHW", "/ plain AMP"]
    columns += ["GB, peak", "of the bf16 peak"] if device.type == "cuda" else ["CPU-ms/image"]
    where = rates.device_name(device) + ("" if device.type == "cuda" else f", {options.threads} CPU threads")
    print_table(f"{options.arch}, batch {batch} at {options.crop} px, {where}, {rounds_of(ways)} rounds", columns, rows)
    return figures


def rounds_of(ways: dict[str, Way]) -> int:
    return min((len(way.rate) for way in ways.values()), default=0)


def store(options: argparse.Namespace, ways: dict[str, Way], device: torch.device) -> None:
    """Store our rates in the file that the plan reads."""
    entries = [
        rates.Rate(
            kind="cuda" if device.type == "cuda" else "cpu",
            device=rates.device_name(device),
            arch=options.arch,
            stride="v1.5",
            precision=way.precision,
            compile="compiled" in name and way.step.not_compiled is None,
            crop=options.crop,
            micro_batch=way.step.plan.micro_batch,
            threads=0 if device.type == "cuda" else options.threads,
            processes=1,
            images_per_second=round(averages.median(way.rate), 3),
            **rates.stamp(),
        )
        for name, way in ways.items()
        # Plans are for many GPUs, which train without CUDA graphs and compile by stages.
        if way.step is not None and not recorded(name) and name != ONE_GRAPH
    ]
    rates.store(entries, options.rates)
    print(f"stored for the plan of launch/slurm.py --dry-run: {options.rates}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/step.py\n  python bench/step.py --arch resnet152 --batch 64 128 256",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--arch", default="resnet50", help="resnet18/34/50/101/152 (default resnet50)")
    parser.add_argument("--batch", type=int, nargs="+", default=[256] if gpu else [16], help="default %(default)s")
    parser.add_argument("--bn-group", type=int, default=32, help="images per forward pass of ours (default 32)")
    parser.add_argument("--crop", type=int, default=224, help="pixels (default 224)")
    parser.add_argument(
        "--threads", type=int, default=available_cores(), help="CPU threads; default: one per available core"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, default=3 if gpu else 5, help="default %(default)s")
    parser.add_argument("--updates", type=int, default=20 if gpu else 1, help="per round (default %(default)s)")
    parser.add_argument(
        "--warm-up", type=int, default=5 if gpu else 1, help="updates before the clock (default %(default)s)"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu)
    one = "measure the net compiled as one graph too (compile_by: net)"
    parser.add_argument("--compile-net", action="store_true", help=one)
    budget = BUDGET if gpu else math.inf
    budget_help = f"seconds, after which ways and rounds are left out; default: {BUDGET:.0f} with a GPU, else no limit"
    parser.add_argument("--budget", type=float, default=budget, help=budget_help)
    parser.add_argument("--full", action="store_true", help="5 rounds on batches of 64, 128 and 256, without a budget")
    parser.add_argument(
        "--rates", type=Path, default=rates.RATES_FILE, help="file that the plan reads (configs/rates.yaml)"
    )
    parser.add_argument("--store", action=argparse.BooleanOptionalAction, default=True, help="store our rates in it")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    options = parser.parse_args(arguments)
    if options.full:
        options.batch, options.rounds, options.budget = [64, 128, 256], 5, math.inf
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = gpus.take(options.device, 0)
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    started = time.monotonic()
    for number, batch in enumerate(options.batch, start=1):
        ways = measure(options, batch, device, started + options.budget * number / len(options.batch))
        figures[str(batch)] = show(options, batch, ways, device)
    if "ours bf16" in ways:
        shares = operators(ways["ours bf16"].update, device)
        figures["limits"] = shares
        rows = [(part, f"{100 * share:.0f}%") for part, share in sorted(shares.items(), key=lambda item: -item[1])]
        print_table(f"Time of our step in bf16 by part, batch {options.batch[-1]}", ("part", "share"), rows)
    if options.store:
        store(options, ways, device)
    ways.clear()
    figures["sgd_ms"] = sgd = sgd_milliseconds(options.arch, options.rounds, device)
    times = [(name, f"{ms:.2f}", f"{ms / sgd['fused']:.2f}") for name, ms in sgd.items()]
    print_table(f"An update of torch.optim.SGD, {options.arch}", ("implementation", "ms, median", "/ fused"), times)
    if options.json:
        load = os.getloadavg()[0]
        print_json({"device": rates.device_name(device), "threads": options.threads, "load": load, **figures})


if __name__ == "__main__":
    run(main)
