"""The cores that a process really has. Imports no torch: preparing data asks too, and starts faster than torch imports."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """The number of cores in this process's affinity mask; fewer if a cgroup's quota allows fewer."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
