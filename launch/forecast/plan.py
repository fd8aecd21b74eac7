"""How long a training will take on how many nodes, before anything is submitted: a model of one step, with its sources.

    step       = max(compute + synchronized BN + the all-reduce that backward does not hide, data)
    compute    = rows per rank / rate of one device
    all-reduce = 2 (N-1)/N bytes / bandwidth + 2 (N-1) latency        (ring; of N ranks, through the slowest link)
    data       = rows per rank / (cores per rank x images/s per core)

The plan says of each number in it whether it was measured (`launch.forecast.rates`) or assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from launch.forecast import rates
from launch.on_slurm.allocation import Allocation
from launch.status import duration
from pipeline.base.command import UserError
from pipeline.base.tables import print_table
from pipeline.models.complexity import Complexity, count
from pipeline.models.resnet import Shortcut, Stride, build
from pipeline.run.config import Config
from pipeline.tracking.figures import epoch
from pipeline.training.batchnorm import plan_groups
from pipeline.training.reduction import choose_mode

# ResNet-50 on one A100, AMP, DALI: NVIDIA DeepLearningExamples, resnet50v1.5 README. Other nets by their multiply-adds.
REFERENCE_RATE = 2470.0
# ResNet-50 on one core of a Xeon with bf16 units (Sapphire Rapids): MLPerf training v3.1, Intel.
CPU_REFERENCE_RATE = 4.79
# Our loader on 4 CPU cores, crop-only decode of real ImageNet JPEGs: 1,095 images/s in a trial.
LOADER_RATE_PER_CORE = 1095 / 4
BACKWARD_SHARE = 2 / 3  # of a step's compute: backward costs two forwards
LATENCY_SECONDS = 20e-6  # of one message between hosts
LOCAL_LATENCY_SECONDS = 5e-6
LOCAL_BYTES_PER_SECOND = 360e9  # all-reduce inside a host of NVLink GPUs (fp32 ResNet-50: 0.57 ms)
LOCAL_CPU_BYTES_PER_SECOND = 0.7e9  # ... of 4 gloo ranks on one host, tree: 0.23 s for 25.6 million floats in a trial
IMAGENET_CLASSES = 1000
PARTS = {  # of a step: column of the printed table -> key of a row
    "step ms": "step_ms",
    "compute": "compute_ms",
    "sync BN": "synchronized_bn_ms",
    "all-reduce": "all_reduce_ms",
    "of it seen": "exposed_ms",
    "data": "data_ms",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of one update on `ranks` ranks, part by part. `hidden`: the share of all-reduce that backward covers."""

    ranks: int
    compute: float
    synchronized_bn: float
    all_reduce: float
    hidden: float
    data: float

    @property
    def seconds(self) -> float:
        return max(self.compute + self.synchronized_bn + self.all_reduce - self.hidden, self.data)


@dataclass(frozen=True, kw_only=True)
class Device:
    """images/s of the config's net on one rank's device, and where that number comes from.

    link: how fast ranks of one host sum gradients; None where that was not measured.
    """

    images_per_second: float
    source: str
    link: rates.Link | None


def device_of(config: Config, allocation: Allocation) -> Device:
    """The allocation's device: as the user gives it, else as it was measured (`launch.forecast.rates`), else by a reference."""
    kind: rates.Kind = "cuda" if allocation.gpus else "cpu"
    path = Path(allocation.rates) if allocation.rates else rates.RATES_FILE
    known = rates.matching(rates.read(path), kind, allocation.device_name)
    share = config.batch // allocation.ranks
    groups = plan_groups(config.batch, config.bn_group, 0, allocation.ranks)
    reduction = choose_mode(config.reduction, allocation.ranks, groups.local, config.gradient_compression)
    link = rates.find_link(known, reduction=reduction, ranks=allocation.ranks_per_node)
    if allocation.images_per_second:
        source = f"measured (--images-per-second): {allocation.images_per_second:,.0f} images/s of {config.arch}"
        return Device(images_per_second=allocation.images_per_second, source=source, link=link)
    found = rates.find_rate(
        known,
        arch=config.arch,
        precision=config.precision,
        crop=config.augment.crop,
        micro_batch=share if config.bn_group == "rank" else min(share, config.bn_group),
        threads=config.threads or allocation.cpus_per_gpu,
        processes=allocation.ranks_per_node,
        compile=config.compile,
    )
    net = _net(config.arch, config.augment.crop, config.shortcut, config.stride)
    if found:
        twin = _net(found.arch, found.crop, "B", found.stride)
        rate = found.images_per_second * twin.multiply_adds / net.multiply_adds
        scaled = "" if twin == net else f", {config.arch} by multiply-adds: {_rate(rate)}"
        beside = f", {found.processes} processes at work" if found.processes > 1 else ""
        source = (
            f"measured on {found.device}{beside} ({found.measured}, torch {found.torch}): {_rate(found.images_per_second)} "
            f"images/s of {found.arch} in {found.precision}, {found.micro_batch} a forward pass{scaled}"
        )
        return Device(images_per_second=rate, source=source, link=link)
    reference, words = REFERENCE_RATE, f"{REFERENCE_RATE:,.0f} images/s of ResNet-50 on an A100 (NVIDIA's README)"
    if kind == "cpu":
        reference = CPU_REFERENCE_RATE * allocation.cpus_per_gpu
        words = f"{CPU_REFERENCE_RATE} images/s of ResNet-50 on one Xeon core (MLPerf), {allocation.cpus_per_gpu} cores a rank"
    rate = reference * _net("resnet50", 224, "B", "v1.5").multiply_adds / net.multiply_adds
    return Device(images_per_second=rate, source=f"assumed: {words}, others by multiply-adds", link=link)


def predict(config: Config, allocation: Allocation) -> Step:
    """One update of `config` on `allocation`. Raises UserError where the batch cannot be divided among its ranks."""
    ranks = allocation.ranks
    groups = plan_groups(config.batch, config.bn_group, 0, ranks)
    net = _net(config.arch, config.augment.crop, config.shortcut, config.stride)
    device = device_of(config, allocation)
    rows = config.batch / ranks
    # Images may be smaller while training starts (augment.stages): the mean work over the run.
    stages = config.augment.spans(0, config.iterations)
    sizes = [(len(span), _net(config.arch, one.crop, config.shortcut, config.stride)) for span, one in stages]
    work = sum(length * one.multiply_adds for length, one in sizes) / config.iterations
    compute = rows / device.images_per_second * work / net.multiply_adds
    between_hosts = allocation.nodes > 1
    inside = LOCAL_BYTES_PER_SECOND if allocation.gpus else LOCAL_CPU_BYTES_PER_SECOND
    bandwidth = allocation.network_gbits * 1e9 / 8 if between_hosts else inside
    latency = LATENCY_SECONDS if between_hosts else LOCAL_LATENCY_SECONDS
    all_reduce = ring_seconds(4 * net.parameters, ranks, bandwidth, latency)
    if (link := device.link) and not between_hosts and ranks > 1:
        # Measured with any number of ranks; the link's latency is that of a whole sum.
        all_reduce = ring_seconds(4 * net.parameters, ranks, link.bytes_per_second, 0) + link.latency_seconds
    # A small all-reduce in forward and one in backward for every layer; groups of neighbours mostly stay on one host.
    group = groups.ranks_per_group
    group_latency = LOCAL_LATENCY_SECONDS if group <= allocation.ranks_per_node else LATENCY_SECONDS
    synchronized_bn = 2 * net.bn_layers * ring_seconds(0, group, bandwidth, group_latency)
    # A GPU computes while its links move bytes. On the CPU the ranks' cores move the bytes, and do not compute meanwhile.
    # A recorded update (cuda_graph), and a net compiled as one graph, have their gradients after the backward pass.
    late = config.cuda_graph or (config.compile and config.compile_by == "net")
    overlaps = allocation.gpus > 0 and not late
    hidden = min(all_reduce, BACKWARD_SHARE * compute) if overlaps else 0.0
    return Step(
        ranks=ranks,
        compute=compute,
        synchronized_bn=synchronized_bn,
        all_reduce=all_reduce,
        hidden=hidden,
        data=rows / (allocation.cpus_per_gpu * LOADER_RATE_PER_CORE),
    )


def ring_seconds(size: float, ranks: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes: 2 (N-1)/N size / bandwidth (bytes/s) + 2 (N-1) latency (s)."""
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * (ranks - 1) * latency


def table(config: Config, allocation: Allocation) -> list[dict[str, float]]:
    """The prediction for 1, 2, 4, 8 ... nodes and for the nodes asked for, where the batch can be divided."""
    rows = []
    for nodes in sorted({allocation.nodes, *(2**power for power in range(7))}):
        try:
            step = predict(config, replace(allocation, nodes=nodes))
        except UserError:
            continue
        rows.append(
            {
                "nodes": nodes,
                "ranks": step.ranks,
                "images_per_second": config.batch / step.seconds,
                "hours": config.iterations * step.seconds / 3600,
                "gpu_hours": config.iterations * step.seconds / 3600 * step.ranks,
                "compute_ms": 1000 * step.compute,
                "synchronized_bn_ms": 1000 * step.synchronized_bn,
                "all_reduce_ms": 1000 * step.all_reduce,
                "exposed_ms": 1000 * (step.all_reduce - step.hidden),
                "data_ms": 1000 * step.data,
                "step_ms": 1000 * step.seconds,
            }
        )
    base = rows[0]["images_per_second"] / rows[0]["ranks"]
    return [{**row, "efficiency": row["images_per_second"] / row["ranks"] / base} for row in rows]


def show_plan(config: Config, allocation: Allocation, images: int | None = None) -> list[dict[str, float]]:
    """Print the plan and where its numbers come from. Returns the table's rows.

    images: of the training split, where the dataset is at hand.
    """
    rows = table(config, allocation)
    columns = ("nodes", "ranks", "images/s", "time", "GPU hours", *PARTS, "efficiency")
    cells = [
        (
            f"{row['nodes']:g}{' *' if row['nodes'] == allocation.nodes else ''}",
            f"{row['ranks']:g}",
            f"{row['images_per_second']:,.0f}",
            duration(3600 * row["hours"]),
            f"{row['gpu_hours']:,.0f}",
            *(f"{row[part]:.1f}" for part in PARTS.values()),
            f"{100 * row['efficiency']:.0f}%",
        )
        for row in rows
    ]
    epochs = f", {epoch(config.iterations, config.batch, images):,.4g} epochs" if images else ""
    title = f"The plan: {config.arch}, {config.iterations:,} iterations of {config.batch} images{epochs} (* asked for)"
    print_table(title, columns, cells)
    device = device_of(config, allocation)
    print(f"one device: {device.source}")
    if device.source.startswith("assumed"):
        print(f"measure yours: python bench/step.py --arch {config.arch}")
    if allocation.nodes == 1 and (link := device.link):
        print(
            f"gradients of one node's ranks: {link.bytes_per_second / 1e9:.2f} GB/s, measured with {link.ranks} ranks, "
            f"{link.reduction}, on {link.device} ({link.measured})"
        )
    network, cores = allocation.network_gbits, allocation.cpus_per_gpu
    print(f"network: {network:g} Gb/s per node, assumed unless the site's file says so (network_gbits)")
    print(f"data: {LOADER_RATE_PER_CORE:.0f} images/s per core (a trial on 4 CPU cores); {cores} cores per rank")
    return rows


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.3g}"


@dataclass(frozen=True, kw_only=True)
class _Net(Complexity):
    bn_layers: int


@cache
def _net(arch: str, crop: int, shortcut: Shortcut, stride: Stride) -> _Net:
    with torch.device("meta"):
        net = build(arch, classes=IMAGENET_CLASSES, shortcut=shortcut, stride=stride)
    layers = sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    return _Net(**vars(count(net, crop)), bn_layers=layers)
