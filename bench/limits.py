"""What limits an update: the share of the device's peak, and of the device's time by kind of operator or kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bench.training import CLASSES, synchronize
from pipeline.models.complexity import count
from pipeline.models.resnet import build

# Dense bf16 FLOP/s from the vendor's data sheet, by a part of the device's name; the first match counts.
BF16_PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
}
# Patterns of ATen operators (after `aten::`) by kind; the first match counts.
PARTS = {
    "convolutions, classifier": r"conv|mm$|linear",
    "batch norm, elementwise": r"batch_norm|relu|threshold|add|mul|div|pool|sum|mean|where|softmax|nll|norm|finite|^eq$|^ne$",
    "copies, casts": r"copy|_to|contiguous|clone|cat|stack|fill|zero",
    "optimizer": r"sgd|foreach",
}
# Patterns of the names of CUDA kernels by kind; the first match counts. Triton's kernels fuse everything but convolutions.
KERNELS = {
    "sums over ranks": r"nccl",
    "copies, casts": r"memcpy|memset|nchwtonhwc|nhwctonchw|transpose|copy_kernel|CatArray",
    "optimizer": r"multi_tensor|fused_?sgd",
    "batch norm, elementwise": r"triton|batch_?norm|bn_|elementwise|reduce|pool|softmax|nll",
    "convolutions, classifier": r"conv|xmma|gemm|cutlass|wgrad|dgrad|fprop|implicit|cudnn|sm\d\d_",
}


def bf16_peak(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a device, None of one that is not in BF16_PEAK."""
    return next((peak for part, peak in BF16_PEAK.items() if part in device_name), None)


def flops_per_image(arch: str, crop: int) -> int:
    """Return the FLOPs of an update per image: a multiply-add is two, and backward costs two forwards."""
    with torch.device("meta"):
        net: nn.Module = build(arch, classes=CLASSES, shortcut="B", stride="v1.5")
    return 6 * count(net, crop).multiply_adds


def operators(update: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the shares of the device's time in one update, by kind of operator (torch.profiler)."""
    gpu = device.type == "cuda"
    shares = dict.fromkeys((*PARTS, "other"), 0.0)
    for event in _profile(update, device).key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        # With a GPU the list holds kernels beside the operators that launched them: count each once.
        if gpu and not event.key.startswith("aten::"):
            continue
        shares[kind_of(event.key.removeprefix("aten::"), PARTS)] += spent
    total = sum(shares.values())
    return {part: spent / total for part, spent in shares.items()} if total else shares


def kernels(update: Callable[[], Any], device: torch.device) -> tuple[int, dict[str, float]]:
    """Return the number of kernels and copies of one update on a GPU, and their milliseconds by kind."""
    events = _profile(update, device).events() or ()
    on_device = [
        (str(event.name), event.time_range.elapsed_us())
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return len(on_device), milliseconds(on_device)


def milliseconds(timed: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add up the kernels (name, microseconds) by kind, in milliseconds."""
    found = dict.fromkeys((*KERNELS, "other"), 0.0)
    for name, microseconds in timed:
        found[kind_of(name, KERNELS)] += microseconds / 1000
    return found


def kind_of(name: str, patterns: dict[str, str]) -> str:
    return next((kind for kind, pattern in patterns.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def _profile(update: Callable[[], Any], device: torch.device) -> torch.profiler.profile:
    gpu = [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *gpu]) as profile:
        update()
        synchronize(device)
    return profile
