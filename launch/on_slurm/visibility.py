"""Whether the nodes see what a job needs: guessed before it is submitted, looked at by its first step.

A run folder on a file system of the login node alone is the commonest mistake on a cluster, and shows itself hours later,
when the job has waited in the queue.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from launch.on_slurm.allocation import Allocation
from launch.on_slurm.scheduler import show
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR

# File systems that only the machine they are mounted on sees. Whatever else there is (nfs4, lustre, gpfs, beegfs, ceph,
# fuse.*, 9p ...) is taken to be shared.
LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs vfat exfat tmpfs ramfs overlay aufs squashfs iso9660".split()  # noqa: SIM905
)


def check_shared(allocation: Allocation, folders: Sequence[Path]) -> None:
    """Raise UserError where a folder cannot be seen by the nodes, by the kind of file system it lies on here."""
    if allocation.assume_shared or _only_this_host(allocation):
        return
    for folder in folders:
        kind, mount = filesystem(folder)
        if kind in LOCAL:
            raise UserError(
                f"{folder} lies on a file system that only this host sees ({kind}, mounted on {mount}), the nodes would not "
                "find it: use a folder on the cluster's shared storage, or --assume-shared where they do see it"
            )


def filesystem(path: Path) -> tuple[str, Path]:
    """(type, mount point) of the file system that `path` lies on, or would lie on once it is made."""
    real = Path(os.path.realpath(path))
    mounted = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    mount = max((one for one in mounted if real.is_relative_to(one)), key=lambda one: len(one.parts), default=Path("/"))
    return mounted.get(mount, "unknown"), mount


def _only_this_host(allocation: Allocation) -> bool:
    """A SLURM of one machine: its nodes see what this host sees."""
    names = set(allocation.partition.split(",")) if allocation.partition else set()
    nodes = [one for one in show("node") if not names or names & set(one.get("Partitions", "").split(","))]
    return {one.get("NodeHostName") for one in nodes} == {socket.gethostname().partition(".")[0]}


def batch_script_lines(folders: Sequence[Path]) -> list[str]:
    """Shell lines of the batch script: every node looks for the folders; where one sees them not, the job ends with a sentence.

    Exit code 2, a mistake of its user: it is not requeued. Any other end of this step is left to the training's own.
    """
    look = (
        # Empty is a mount point where nothing is mounted.
        'for one in "$@"; do [ -n "$(ls -A "$one" 2>/dev/null)" ] || { echo "error: $SLURMD_NODENAME sees nothing in $one: put '
        f'it on storage that every node mounts" >&2; exit {EXIT_USER_ERROR}; }}; done'
    )
    step = 'srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task=1'
    return [
        f"{step} {shlex.join(['sh', '-c', look, 'look', *map(str, folders)])}",
        f"[ $? -ne {EXIT_USER_ERROR} ] || exit {EXIT_USER_ERROR}",
    ]
