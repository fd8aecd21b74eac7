"""Hands work to submitit: its scripts, its folder, its executors for SLURM, for this machine and for this process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.on_slurm import ending, fence, visibility
from launch.on_slurm.allocation import Allocation, has_slurm
from launch.on_slurm.job import Job, visible_gpus_kept
from launch.on_slurm.scheduler import check_partition
from launch.ranks.failure import print_cause, read_notes
from launch.ranks.follow import following
from launch.ranks.work import Work
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_FAILED
from pipeline.base.layout import LOGS, SLURM

STOPS = 1_000_000  # submitit's limit on time-outs: a training of weeks meets the job's time limit many times


class _Script(submitit.SlurmExecutor):
    """Writes sbatch scripts where there is no SLURM, too (`--dry-run` on a laptop)."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def make_folder(work: Work) -> Path:
    """Make submitit's folder, for scripts, pickles and logs. Only its owner can enter: a pickle is code."""
    folder = work.folder / SLURM
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def sbatch_parameters(work: Work, allocation: Allocation) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor for `work`, with the shell lines that look after its ranks.

    Raises UserError for folders whose names could become lines of the script.
    """
    folder = work.folder / SLURM
    for named in (folder, *work.inputs):
        if not str(named).isprintable():
            raise UserError(
                f"the name of the folder {str(named)!r} holds control characters, which must not get into a script for "
                "sbatch: choose another folder (--runs, --data)"
            )
    setup = [
        *allocation.setup,
        *ending.batch_script_lines(folder, allocation.requeue_limit),
        *fence.batch_script_lines(work.folder),
        *visibility.batch_script_lines((folder, *work.inputs)),
    ]
    return {**allocation.sbatch_parameters(work.name), "setup": setup}


def script(work: Work, allocation: Allocation) -> str:
    """The sbatch script, exactly as submitit submits it."""
    executor = _Script(work.folder / SLURM, max_num_timeout=STOPS)
    executor.update_parameters(**sbatch_parameters(work, allocation))
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(work: Work, allocation: Allocation, after: Sequence[str] = ()) -> str:
    """Submit `work` as one job, to start after the jobs `after` have ended well; the job's id.

    Raises UserError for what SLURM would find only after the job has waited in the queue, and where sbatch refuses the job,
    with sbatch's words.
    """
    if not has_slurm():
        raise UserError(
            "there is no SLURM on this machine (sbatch and srun are not on PATH): run this on a login node of the cluster "
            "(with --dry-run or --cluster local, launch/slurm.py works here)"
        )
    check_partition(allocation)
    visibility.check_shared(allocation, [work.folder, *work.inputs])
    parameters = sbatch_parameters(work, allocation)
    if after:  # a job that can never start leaves the queue, where it would seem to wait
        dependency = {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        parameters["additional_parameters"] |= dependency
    folder = make_folder(work)
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=STOPS)
    executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what the error says
            return str(executor.submit(Job(work)).job_id)
    except (FailedSubmissionError, FailedJobError) as error:
        for leftover in (*folder.glob(".submission_file_*"), *folder.glob("[0-9a-f]" * 32 + ".pkl")):
            leftover.unlink(missing_ok=True)
        reason = " ".join(str(error).split()) or "it gave no reason"
        raise UserError(f"sbatch refused the job: {reason.removeprefix('sbatch: error: ')}") from None


def run_here(work: Work, allocation: Allocation, cluster: str) -> int:
    """Do `work` under submitit's local or debug executor and wait for its end; the exit code."""
    executor = submitit.AutoExecutor(make_folder(work), cluster=cluster)
    executor.update_parameters(
        timeout_min=allocation.minutes,
        tasks_per_node=allocation.ranks,
        gpus_per_node=allocation.gpus_per_node,
        local_setup=list(allocation.setup),
    )
    with visible_gpus_kept():
        job = executor.submit(Job(work))
    if cluster == "debug":
        return int(job.results()[0])
    print(f"{work.name} in {allocation.ranks} processes; logs: {job.paths.stdout}", file=sys.stderr)
    try:
        with following(job.task(0).paths.stderr):
            job.wait()
    except KeyboardInterrupt:
        job.cancel()
        job.wait()
        raise
    return outcome(work, job)


def outcome(work: Work, job: submitit.Job[int]) -> int:
    """Exit code of a local job that has ended. Prints the cause where the job failed."""
    if all(task.paths.result_pickle.exists() for task in map(job.task, range(job.num_tasks))):
        lines = job.task(0).paths.stdout.read_text().splitlines()
        print("\n".join(line for line in lines if not line.startswith("submitit ")))
        return 0
    failures = read_notes(work.folder / LOGS, f"{job.job_id}.0")
    if not failures:
        print(f"error: the job ended without a result, its logs are in {job.paths.folder}", file=sys.stderr)
        return EXIT_FAILED
    return print_cause(failures)
