"""Hands work to submitit: its scripts, its folder, its executors for SLURM, for this machine and for this process."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.on_slurm import ending, fence, visibility
from launch.on_slurm.allocation import Allocation, has_slurm
from launch.on_slurm.environment import submitting
from launch.on_slurm.job import Job, stop_for_good, visible_gpus_kept
from launch.on_slurm.scheduler import check_partition
from launch.ranks.failure import print_cause, read_notes
from launch.ranks.follow import following
from launch.ranks.stopping import passing_on
from launch.ranks.work import Work
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_FAILED
from pipeline.base.layout import CHECKPOINTS, LOGS, SLURM
from pipeline.base.stopping import (
    NOTHING_TO_SAVE,
    TO_GO_ON,
    Requests,
    children_of_the_launcher,
    ended_at_once,
    exit_code,
    going_on,
    say,
)

STOPS = 1_000_000  # submitit's limit on time-outs: a training of weeks meets the job's time limit many times

# What a task of submitit's local executor runs, and how long after the submission a task may be missing yet.
TASK, STARTING_SECONDS = "submitit.core._submit", 60.0


class _Slurm(submitit.SlurmExecutor):
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
    if found := set(str(folder)) & set("%\\"):  # %j is the job's number in a log's name; a backslash is left out
        raise UserError(
            f"the name of the folder {work.folder} holds {' and '.join(sorted(found))}, which sbatch would read otherwise in "
            "the names of the job's logs: choose another folder (--runs, --name)"
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
    return text_of(_executor(work.folder / SLURM, sbatch_parameters(work, allocation)))


def text_of(executor: submitit.SlurmExecutor) -> str:
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _executor(folder: Path, parameters: Mapping[str, Any]) -> _Slurm:
    executor = _Slurm(folder, max_num_timeout=STOPS)
    executor.update_parameters(**parameters)
    return executor


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
    if after and "dependency" in parameters["additional_parameters"]:
        raise UserError(f"the job is to wait for {', '.join(after)}: leave sbatch's dependency out")
    if after:  # a job that can never start leaves the queue, where it would seem to wait
        dependency = {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
        parameters["additional_parameters"] |= dependency
    folder = make_folder(work)
    executor = _executor(folder, parameters)
    options = re.findall(r"^#SBATCH --([^=\n]+)", text_of(executor), re.MULTILINE)
    try:
        with contextlib.redirect_stderr(io.StringIO()), submitting(options):  # submitit prints what the error says
            return str(executor.submit(Job(work)).job_id)
    except (FailedSubmissionError, FailedJobError) as error:
        for leftover in (*folder.glob(".submission_file_*"), *folder.glob("[0-9a-f]" * 32 + ".pkl")):
            leftover.unlink(missing_ok=True)
        reason = " ".join(str(error).split()) or "it gave no reason"
        # The last one is said of an answer in another encoding.
        if any(words in reason for words in ("make sense of sbatch output", "it gave no reason", "an unknown reason")):
            raise UserError(
                f"sbatch did not answer with the number of a job ({reason}): 'squeue --me' shows whether there is one, which "
                "would not find its work: cancel it and start the same command again"
            ) from None
        raise UserError(f"sbatch refused the job: {reason.removeprefix('sbatch: error: ')}") from None


def run_here(work: Work, allocation: Allocation, cluster: str) -> int:
    """Do `work` under submitit's local or debug executor and wait for its end; the exit code."""
    executor = submitit.AutoExecutor(make_folder(work), cluster=cluster)
    executor.update_parameters(
        timeout_min=allocation.minutes,
        tasks_per_node=allocation.ranks,
        gpus_per_node=allocation.gpus,
        local_setup=list(allocation.setup),
    )
    if cluster == "debug":
        return int(executor.submit(Job(work)).results()[0])

    def ask(number: signal.Signals) -> None:
        stop_for_good(work.folder / SLURM, job.job_id)
        asked: set[psutil.Process] = set()
        while True:  # the controller starts them one after the other
            tasks = {*processes_of(job, TASK)} - asked
            send(tasks, signal.SIGTERM)
            asked |= tasks
            late = time.monotonic() >= submitted + STARTING_SECONDS
            if len(asked) >= job.num_tasks or late or not processes_of(job):
                return
            time.sleep(0.05)

    submitted = time.monotonic()
    with contextlib.ExitStack() as stack:
        with (
            visible_gpus_kept(),
            children_of_the_launcher(),
        ):  # Ctrl-C waits: there is no moment when it would miss the job
            job = executor.submit(Job(work))
            requests = stack.enter_context(
                passing_on(work.saving, ask, lambda: send(processes_of(job), signal.SIGKILL))
            )
        print(f"{work.name} in {allocation.ranks} processes; logs: {job.paths.stdout}", file=sys.stderr)
        stack.enter_context(following(job.task(0).paths.stderr))
        job.wait()
    return outcome(work, job, requests)


def processes_of(job: submitit.Job[int], module: str = "") -> list[psutil.Process]:
    """The living processes of a local job: its controller and its tasks, or those that run `module`."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        controller = psutil.Process(int(job.job_id))
        for process in (controller, *controller.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                lives = process.status() != psutil.STATUS_ZOMBIE
                if lives and (not module or module in process.cmdline()):
                    found.append(process)
    return found


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those of the processes that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def outcome(work: Work, job: submitit.Job[int], requests: Requests) -> int:
    """Exit code of a local job that has ended. Prints the cause where the job failed."""
    if requests.ended:
        say(ended_at_once(work.folder / CHECKPOINTS))
        return exit_code(signal.SIGINT)
    if all(task.paths.result_pickle.exists() for task in map(job.task, range(job.num_tasks))):
        lines = job.task(0).paths.stdout.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(line for line in lines if not line.startswith("submitit ")))
        return 0
    failures = read_notes(work.folder / LOGS, f"{job.job_id}.0")
    if not failures and requests.first is not None:
        log = job.task(0).paths.stderr
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if TO_GO_ON not in said:  # it ended before it could speak
            say(going_on(NOTHING_TO_SAVE))
        return exit_code(requests.first)
    if not failures:
        print(f"error: the job ended without a result, its logs are in {job.paths.folder}", file=sys.stderr)
        return EXIT_FAILED
    return print_cause(failures)
