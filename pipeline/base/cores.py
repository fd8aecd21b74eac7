"""The cores that a process really has. Imports no torch: preparing data asks too, and starts faster than torch imports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def share_of_cores(mine: frozenset[int], masks: Sequence[frozenset[int]]) -> int:
    """How many of this process's cores are its share, at least 1, where processes of one host have the affinity `masks`.

    masks: `mine` among them. Schedulers bind each process to cores of its own, or let all have the same ones, or neither.
    """
    cores = sum(1 / sum(core in mask for mask in masks) for core in mine)
    return max(1, int(cores * available_cores() / len(mine) + 1e-6))  # a quota may leave less than the cores


def cores_together(mine: frozenset[int], masks: Sequence[frozenset[int]]) -> int:
    """How many cores all the processes of this host have together, of which this process has the affinity `mine`."""
    available = available_cores()
    return len(mine.union(*masks)) if available == len(mine) else available  # a quota holds for all of them


def available_cores() -> int:
    """The number of cores in this process's affinity mask; fewer if a cgroup's quota allows fewer."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text(encoding="utf-8").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
