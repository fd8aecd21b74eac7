"""How long a training will take on how many nodes, before anything is submitted: a model of one step, with its sources.

    step       = max(compute + synchronized BN + the all-reduce that backward does not hide, data)
    compute    = rows per rank / rate of one device
    all-reduce = 2 (N-1)/N bytes / bandwidth + 2 (N-1) latency        (ring; of N ranks, through the slowest link)
    data       = rows per rank / (cores per rank x images/s per core)

Each number that goes in says whether it was measured or assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from launch.allocation import Allocation
from launch.status import duration
from pipeline.command import UserError, print_table
from pipeline.config import Config
from pipeline.training.batchnorm import plan_groups

# ResNet-50 on one A100, AMP, DALI: NVIDIA DeepLearningExamples, resnet50v1.5 README. Other nets by their multiply-adds.
REFERENCE_RATE = 2470.0
# Our loader on 4 CPU cores, crop-only decode of real ImageNet JPEGs: 1,095 images/s in a trial.
LOADER_RATE_PER_CORE = 1095 / 4
BACKWARD_SHARE = 2 / 3  # of a step's compute: backward costs two forwards
LATENCY_SECONDS = 20e-6  # of one message between hosts
LOCAL_LATENCY_SECONDS = 5e-6
LOCAL_BYTES_PER_SECOND = 360e9  # all-reduce inside a host of NVLink GPUs (fp32 ResNet-50: 0.57 ms)
IMAGENET_CLASSES = 1000


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


def predict(config: Config, allocation: Allocation) -> Step:
    """One update of `config` on `allocation`. Raises UserError where its ranks do not divide the batch."""
    ranks = allocation.ranks
    groups = plan_groups(config.batch, config.bn_group, 0, ranks)
    parameters, multiply_adds, bn_layers = _net(config.arch, config.augment.crop)
    rate = allocation.images_per_second or REFERENCE_RATE * _net("resnet50", 224)[1] / multiply_adds
    rows = config.batch / ranks
    compute = rows / rate
    between_hosts = allocation.nodes > 1
    bandwidth = allocation.network_gbits * 1e9 / 8 if between_hosts else LOCAL_BYTES_PER_SECOND
    latency = LATENCY_SECONDS if between_hosts else LOCAL_LATENCY_SECONDS
    all_reduce = ring_seconds(4 * parameters, ranks, bandwidth, latency)
    # A small all-reduce in forward and one in backward for every layer; groups of neighbours mostly stay on one host.
    group = groups.ranks_per_group
    group_latency = LOCAL_LATENCY_SECONDS if group <= allocation.ranks_per_node else LATENCY_SECONDS
    synchronized_bn = 2 * bn_layers * ring_seconds(0, group, bandwidth, group_latency)
    return Step(
        ranks=ranks,
        compute=compute,
        synchronized_bn=synchronized_bn,
        all_reduce=all_reduce,
        hidden=min(all_reduce, BACKWARD_SHARE * compute),
        data=rows / (allocation.cpus_per_gpu * LOADER_RATE_PER_CORE),
    )


def ring_seconds(size: float, ranks: int, bandwidth: float, latency: float) -> float:
    """A ring all-reduce of `size` bytes: 2 (N-1)/N size / bandwidth (bytes/s) + 2 (N-1) latency (s)."""
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * (ranks - 1) * latency


def table(config: Config, allocation: Allocation) -> list[dict[str, float]]:
    """The prediction for 1, 2, 4, 8 ... nodes and for the nodes asked for, as far as the batch can be divided."""
    sizes = sorted({allocation.nodes, *(2**power for power in range(7))})
    rows = []
    for nodes in sizes:
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


def show_plan(config: Config, allocation: Allocation) -> list[dict[str, float]]:
    """Print the plan and where its numbers come from; the table's rows."""
    rows = table(config, allocation)
    columns = (
        "nodes",
        "ranks",
        "images/s",
        "time",
        "GPU hours",
        "step ms",
        "compute",
        "sync BN",
        "all-reduce",
        "of it seen",
    )
    cells = [
        (
            f"{row['nodes']:g}{' *' if row['nodes'] == allocation.nodes else ''}",
            f"{row['ranks']:g}",
            f"{row['images_per_second']:,.0f}",
            duration(3600 * row["hours"]),
            f"{row['gpu_hours']:,.0f}",
            *(
                f"{row[name]:.1f}"
                for name in ("step_ms", "compute_ms", "synchronized_bn_ms", "all_reduce_ms", "exposed_ms", "data_ms")
            ),
            f"{100 * row['efficiency']:.0f}%",
        )
        for row in rows
    ]
    title = f"The plan: {config.arch}, {config.iterations:,} iterations of {config.batch} images (* asked for)"
    print_table(title, (*columns, "data", "efficiency"), cells)
    measured = allocation.images_per_second is not None
    print(
        "one device: "
        + (
            f"{allocation.images_per_second:,.0f} images/s of {config.arch}, measured (--images-per-second)"
            if measured
            else f"assumed: {REFERENCE_RATE:,.0f} images/s of ResNet-50 on an A100 (NVIDIA's README), others by multiply-adds; "
            "measure yours and give --images-per-second"
        )
    )
    print(
        f"network: {allocation.network_gbits:g} Gb/s per node, assumed unless the site's file says so (network_gbits)"
    )
    print(
        f"data: {LOADER_RATE_PER_CORE:.0f} images/s per core (a trial on 4 CPU cores); {allocation.cpus_per_gpu} cores per rank"
    )
    return rows


@cache
def _net(arch: str, crop: int) -> tuple[int, int, int]:
    """(parameters, multiply-adds of one image, batch normalization layers)."""
    import torch

    from pipeline.models.complexity import count
    from pipeline.models.resnet import build

    with torch.device("meta"):
        net = build(arch, classes=IMAGENET_CLASSES)
    complexity = count(net, crop)
    layers = sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    return complexity.parameters, complexity.multiply_adds, layers
