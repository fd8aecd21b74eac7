"""Whether the nodes see the folders that a job needs: guessed before it is submitted, checked by its first step.

A run folder on a file system of the login node alone is the commonest mistake on a cluster, and otherwise shows only when
the job has waited hours in the queue.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from launch.on_slurm.allocation import Allocation
from launch.on_slurm.scheduler import show
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR

# File systems that only the machine sees where they are mounted. All others (nfs4, lustre, gpfs, beegfs, ceph, fuse.*,
# 9p ...) are taken to be shared.
LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs vfat exfat tmpfs ramfs overlay aufs squashfs iso9660".split()  # noqa: SIM905
)


def check_shared(allocation: Allocation, folders: Sequence[Path]) -> None:
    """Raise UserError where the nodes cannot see a folder, judged by the kind of file system that it lies on here."""
    if allocation.assume_shared or _only_this_host(allocation):
        return
    for folder in folders:
        kind, mount = filesystem(folder)
        if kind in LOCAL:
            raise UserError(
                f"{folder} lies on a file system that only this host sees ({kind}, mounted on {mount}), so the nodes would not "
                "find it: use a folder on the cluster's shared storage, or --assume-shared where the nodes do see it"
            )


def filesystem(path: Path) -> tuple[str, Path]:
    """(type, mount point) of the file system that `path` lies on, or would lie on if it existed."""
    real = path.resolve()
    types = {Path(partition.mountpoint): partition.fstype for partition in psutil.disk_partitions(all=True)}
    above = [mount for mount in types if real.is_relative_to(mount)]
    mount = max(above, key=lambda mount: len(mount.parts), default=Path("/"))
    return types.get(mount, "unknown"), mount


def _only_this_host(allocation: Allocation) -> bool:
    """Whether this host is the only node of the SLURM, which then sees what this host sees."""
    names = set(allocation.partition.split(",")) if allocation.partition else set()
    nodes = [node for node in show("node") if not names or names & set(node.get("Partitions", "").split(","))]
    return {node.get("NodeHostName") for node in nodes} == {socket.gethostname().partition(".")[0]}


def batch_script_lines(folders: Sequence[Path]) -> list[str]:
    """Shell lines of the batch script: every node looks for the folders. If a node does not see one, the job ends with an
    error that names both.

    Exit code 2, the user's mistake: the job is not requeued. After any other failure of this step the ranks are started.
    """
    look = (
        # A mount point where nothing is mounted is empty.
        'for one in "$@"; do [ -n "$(ls -A "$one" 2>/dev/null)" ] || { echo "error: $SLURMD_NODENAME sees nothing in $one: put '
        f'it on storage that every node mounts" >&2; exit {EXIT_USER_ERROR}; }}; done'
    )
    step = 'srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task=1 --export=ALL'
    return [
        f"{step} {shlex.join(['sh', '-c', look, 'look', *map(str, folders)])}",
        f"[ $? -ne {EXIT_USER_ERROR} ] || exit {EXIT_USER_ERROR}",
    ]
