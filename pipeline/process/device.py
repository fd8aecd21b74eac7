"""The names of devices, under which measurements of them are stored."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def model_name(device: torch.device) -> str:
    """The GPU's name as the driver gives it, or the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
