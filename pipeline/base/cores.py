"""The cores a process really has. Without torch: preparing data asks too, and starts in a fraction of its import."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """The cores this process really has: its affinity mask, less where a cgroup's quota says so."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
