"""Asks SLURM: for its partitions before a job is submitted, for the job's state afterwards."""

from __future__ import annotations

import subprocess

from launch.on_slurm.allocation import Allocation, minutes
from pipeline.base.command import UserError, nearest

TIMEOUT_SECONDS, NO_ANSWER = 60.0, 124  # of one call of scontrol, and its return code behind that time


def check_partition(allocation: Allocation) -> None:
    """Raise UserError where the partition does not exist, or where the job would wait in it for ever.

    sbatch accepts a time and a number of nodes that the partition never grants. What it refuses itself (features, GPUs,
    accounts) needs no check: nothing is submitted then, and sbatch says why.
    """
    partitions = {partition["PartitionName"]: partition for partition in show("partition")}
    if not partitions:
        return  # scontrol does not know: sbatch will say
    names = allocation.partition.split(",") if allocation.partition else []
    names = names or [name for name, partition in partitions.items() if partition.get("Default") == "YES"]
    if not names:
        valid = ", ".join(sorted(partitions))
        raise UserError(f"this cluster has no default partition: give --partition, one of {valid}")
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


def show(*words: str) -> list[dict[str, str]]:
    """`scontrol show KIND [NAME]` as one dict per line; none where SLURM is not installed, or does not know the name.

    Raises UserError where SLURM does not answer.
    """
    try:
        done = scontrol("show", *words, "--oneliner")
    except FileNotFoundError:
        return []
    if done.returncode == NO_ANSWER:
        raise UserError(f"SLURM's controller did not answer '{' '.join(done.args)}' within a minute: try again")
    if "Unable to contact slurm controller" in done.stderr:
        raise UserError("SLURM's controller cannot be reached: try again, or ask the cluster's administrators")
    text = done.stdout if done.returncode == 0 else ""
    lines = [dict(word.partition("=")[::2] for word in line.split()) for line in text.splitlines()]
    return [line for line in lines if "=" in text and line]


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """One call of scontrol; return code NO_ANSWER where it does not end within TIMEOUT_SECONDS."""
    command = ["scontrol", *words]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, NO_ANSWER, "", f"no answer within {TIMEOUT_SECONDS:g} s")


def _too_long(wanted: int, limit: str) -> bool:
    return limit not in ("UNLIMITED", "INFINITE", "NONE") and wanted > minutes(limit)
