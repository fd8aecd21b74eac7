"""Asks SLURM: for its partitions before a job is submitted, for the job's state afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from launch.on_slurm.allocation import Allocation, minutes
from pipeline.base.command import UserError, nearest

TIMEOUT_SECONDS = 60.0


def check_partition(allocation: Allocation) -> None:
    """Raise UserError where the partition does not exist, or where the job would wait in it for ever.

    sbatch accepts a time and a number of nodes that the partition never grants. What it refuses itself (features, GPUs,
    accounts) needs no check: nothing is submitted then, and sbatch says why.
    """
    partitions = {partition["PartitionName"]: partition for partition in show("partition")}
    if not partitions:
        return  # scontrol does not know: sbatch will say
    names = allocation.partition.split(",") if allocation.partition else _default(partitions)
    for name in names:
        if name not in partitions:
            raise UserError(f"there is no partition '{name}' on this cluster: {nearest(name, partitions)}")
    if all(_too_long(allocation.minutes, partitions[name].get("MaxTime", "UNLIMITED")) for name in names):
        longest = ", ".join(f"{name} {partitions[name]['MaxTime']}" for name in names)
        raise UserError(
            f"--time {allocation.time} is over the partition's limit ({longest}): give a shorter time, "
            "the job requeues itself as often as the training needs"
        )
    if all(allocation.nodes > int(partitions[name].get("TotalNodes", allocation.nodes)) for name in names):
        largest = ", ".join(f"{name} {partitions[name]['TotalNodes']}" for name in names)
        raise UserError(f"--nodes {allocation.nodes} is more than the partition has ({largest}): give fewer nodes")


def show(kind: str, name: str | None = None) -> list[dict[str, str]]:
    """`scontrol show KIND [NAME]` as one dict per line; none where SLURM knows nothing of that name."""
    text = ask(["scontrol", "show", kind, *([name] if name else []), "--oneliner"])
    lines = [dict(word.partition("=")[::2] for word in line.split()) for line in text.splitlines()]
    return [line for line in lines if "=" in text and line]


def ask(command: Sequence[str]) -> str:
    """Standard output of one of SLURM's commands; empty where the command fails or is not installed.

    Raises UserError where SLURM does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except FileNotFoundError:
        return ""  # SLURM is not installed
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM's controller did not answer '{' '.join(command)}' within a minute: try again") from None
    if "Unable to contact slurm controller" in done.stderr:
        raise UserError("SLURM's controller cannot be reached: try again, or ask the cluster's administrators")
    return done.stdout if done.returncode == 0 else ""


def _default(partitions: dict[str, dict[str, str]]) -> list[str]:
    names = [name for name, partition in partitions.items() if partition.get("Default") == "YES"]
    if not names:
        raise UserError(
            f"this cluster has no default partition: give --partition, one of {', '.join(sorted(partitions))}"
        )
    return names


def _too_long(wanted: int, limit: str) -> bool:
    return limit not in ("UNLIMITED", "INFINITE", "NONE") and wanted > minutes(limit)
