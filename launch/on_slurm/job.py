"""What submitit ships to the nodes: the work, and how one SLURM task (one rank) does it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment

from launch.on_slurm import ending
from launch.on_slurm.attempt import restarts, slurm_variables
from launch.on_slurm.fence import watch
from launch.ranks.failure import Failure, attempt, failure_of_hang, note
from launch.ranks.work import Work
from pipeline.base.attempt import LAUNCHER_VARIABLE
from pipeline.base.exits import EXIT_PREEMPTED
from pipeline.base.layout import LOGS, SLURM
from pipeline.base.leaving import cleanup_is_skipped, leave
from pipeline.base.output import prepare
from pipeline.base.stopping import end_on_request
from pipeline.process.watchdog import Hang

# Below the ephemeral range of Linux (32768 up): no passing connection can hold the port.
FIRST_PORT, LAST_PORT = 20_000, 32_000
# Requeueing ends every task; those that wait for it give up after this long.
REQUEUE_SECONDS = 90.0

# submitit's local executor gives its tasks a CUDA_VISIBLE_DEVICES of its own: 0 to n-1, or '' for no GPUs. The launcher's
# value travels beside it.
VISIBLE, LAUNCHERS_VISIBLE = "CUDA_VISIBLE_DEVICES", "PIPELINE_LAUNCHERS_CUDA_VISIBLE_DEVICES"

STOPPED = ".stopped"  # suffix behind a job of the local executor whose user has asked to stop

# The signals that end a rank at once before its training begins; submitit answers the others.
EARLY = {"slurm": (signal.SIGINT, signal.SIGHUP), "local": (signal.SIGTERM,)}


@dataclass(frozen=True)
class Job:
    """Does `work` as one rank of the allocation that it is called in. Picklable."""

    work: Work

    def __call__(self) -> int:
        """Returns 0 where the work is finished. Ends the process for any other outcome, so that the scheduler sees it."""
        prepare()
        environment = JobEnvironment()
        export_environment(environment)
        if environment.cluster != "debug":
            end_on_request(EARLY[environment.cluster])
        if environment.cluster == "slurm":
            watch(self.work.folder)

        def on_hang(hang: Hang) -> None:
            self._tell(failure_of_hang(hang), environment)

        code, failure = attempt(environment.global_rank, lambda: self.work(on_hang))
        if failure:
            self._tell(failure, environment)
        if code == EXIT_PREEMPTED and not is_stopped(self.work.folder / SLURM, environment.job_id):
            requeue(environment)
        if code:
            leave(code)
        if cleanup_is_skipped():
            atexit.register(leave, 0)  # after submitit has written the result
        return 0

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit in rank 0 where the signal came before the trainer could handle it: the same job again."""
        leftover = JobEnvironment().paths.submitted_pickle
        leftover = leftover.with_suffix(leftover.suffix + ".save_tmp")
        leftover.unlink(missing_ok=True)  # of a save that was killed: submitit would trip over it
        return DelayedSubmission(Job(self.work))

    def _tell(self, failure: Failure, environment: JobEnvironment) -> None:
        """Print the failure (into the job's log on SLURM, here in debug mode); note it for launchers in other processes."""
        if environment.cluster != "local":
            print(failure.detail or f"error: {failure.sentence}", file=sys.stderr, flush=True)
        if environment.cluster != "debug":
            name = f"{environment.job_id}.{restarts()}"
            note(failure, self.work.folder / LOGS, name, str(environment.paths.stderr))


def export_environment(environment: JobEnvironment) -> None:
    """Set the environment variables that the trainer reads, with torchrun's names."""
    names = TorchDistributedEnvironment()
    job_id = environment.raw_job_id if environment.raw_job_id.isdigit() else str(os.getpid())
    names.master_port = port_of(job_id, restarts())
    if environment.cluster == "local":
        restore_visible_gpus()
    if environment.cluster != "slurm":
        names.master_addr = "127.0.0.1"  # one machine, whose own name may not resolve
    names.export(overwrite=True, set_cuda_visible_devices=False)
    os.environ[LAUNCHER_VARIABLE] = "slurm" if environment.cluster == "slurm" else f"submitit-{environment.cluster}"
    os.environ |= slurm_variables()


@contextmanager
def visible_gpus_kept() -> Iterator[None]:
    """Processes that are started in the block can take this process's CUDA_VISIBLE_DEVICES, by `restore_visible_gpus`."""
    os.environ.pop(LAUNCHERS_VISIBLE, None)  # of a launcher that this one was started by
    if VISIBLE in os.environ:
        os.environ[LAUNCHERS_VISIBLE] = os.environ[VISIBLE]
    try:
        yield
    finally:
        os.environ.pop(LAUNCHERS_VISIBLE, None)


def restore_visible_gpus() -> None:
    """Set CUDA_VISIBLE_DEVICES as the launcher had it, or unset it. Must be called before CUDA starts in this process."""
    launchers = os.environ.pop(LAUNCHERS_VISIBLE, None)
    if launchers is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = launchers


def stop_for_good(folder: Path, job_id: str) -> None:
    """Let a job of the local executor end once it has saved, instead of starting again. folder: submitit's."""
    (folder / f"{job_id}{STOPPED}").touch()


def is_stopped(folder: Path, job_id: str) -> bool:
    return (folder / f"{job_id}{STOPPED}").exists()


def port_of(job_id: str, restarts: int) -> int:
    """The TCP port where the ranks of one attempt of a job meet: the same on every node.

    A hash of both: what is left of the attempt before may still hold that attempt's port, and the job with the next number
    may share a node with this one.
    """
    return FIRST_PORT + zlib.crc32(f"{job_id}.{restarts}".encode()) % (LAST_PORT - FIRST_PORT)


def requeue(environment: JobEnvironment) -> None:
    """Rank 0 puts the job back into the queue; the scheduler then ends every task."""
    if environment.cluster == "slurm":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # saved: the scheduler need not wait before it kills
        if environment.global_rank == 0:
            requeue_running_job(environment.job_id)
        time.sleep(REQUEUE_SECONDS)
    elif environment.global_rank == 0:
        environment._requeue(0)  # the local controller starts all tasks again on this exit code


def requeue_running_job(job_id: str) -> None:
    """`scontrol requeue` for this attempt alone: not for a job that its user has just cancelled, nor for a later attempt."""
    try:
        if ending.is_running(job_id, restarts()):
            print(f"saved; requeueing job {job_id}", file=sys.stderr, flush=True)
            ending.requeue(job_id, restarts())
        else:
            reason = f"job {job_id} is not running any more"
            print(f"saved; {reason}: the scheduler decides whether the job starts again", file=sys.stderr)
    except ending.ControllerError as error:  # the exit code makes the batch script try again
        print(f"warning: saved, but {error}", file=sys.stderr)
