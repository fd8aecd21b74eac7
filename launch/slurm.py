"""Train on a SLURM cluster, by submitit: one task per GPU.

python launch/slurm.py --arch resnet152 --nodes 4
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from jsonargparse import ArgumentParser
from submitit.core.utils import FailedSubmissionError

from launch.allocation import Allocation, add_options, has_slurm, resolve
from launch.failure import EXIT_FAILED, conclude, read_notes
from launch.follow import following
from launch.job import Job
from launch.local import gpus
from launch.scheduler import check_partition
from launch.summary import summary
from pipeline import command
from pipeline.command import UserError, print_json, print_table
from pipeline.config import Config, parse, parser, to_yaml
from pipeline.data.dataset import Dataset
from pipeline.training.batchnorm import plan_groups

EXAMPLE = "python launch/slurm.py --arch resnet152 --nodes 4"
CLUSTERS = ("slurm", "local", "debug")
STOPS = 1_000_000  # submitit's own limit on time-outs: a training of weeks meets its time limit as often as it takes


class _Script(submitit.SlurmExecutor):
    """Writes sbatch scripts also where there is no SLURM (`--dry-run` on a laptop)."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def options() -> ArgumentParser:
    """The command line: the config's values, the allocation's, and where to submit."""
    made = parser("Submits the training of one net to SLURM, or goes on with its run.", EXAMPLE)
    add_options(made)
    made.add_argument(
        "--cluster", choices=CLUSTERS, help="slurm; local: submitit's processes on this machine; debug: in here"
    )
    made.add_argument("--dry-run", action="store_true", help="print the sbatch script and the config; submit nothing")
    made.add_argument("--json", action="store_true", help="end with one line of JSON")
    return made


def run(argv: Sequence[str] | None = None) -> int:
    """Submit (`--cluster slurm`), or train under submitit's local or debug executor; the exit code."""
    config, own = parse(options(), sys.argv[1:] if argv is None else argv)
    if own.print_config:
        print(to_yaml(config), end="")
        return 0
    cluster = own.cluster or "slurm"
    allocation = resolve(vars(own), here(cluster))
    check(config, allocation, cluster)
    if own.dry_run:
        return show(config, allocation, own.json)
    if cluster == "slurm" and not has_slurm():
        raise UserError(
            "there is no SLURM on this machine (sbatch and srun are not on PATH): run this on a login node of the cluster, "
            "or add --dry-run, or --cluster local to train here"
        )
    if cluster == "slurm":
        check_partition(allocation)
        Dataset(config.data)  # readable here, of a format we know
    folder = make_folder(config)
    if cluster != "slurm":
        code = train_here(config, allocation, cluster, folder)
        if own.json:
            print_json(summary(config, code))
        return code
    job = submit(config, allocation, folder)
    columns = ("job", "name", "nodes", "ranks", "time limit", "run folder")
    row = (job.job_id, config.run_name, allocation.nodes, allocation.ranks, allocation.time, config.run_folder)
    print_table("submitted", columns, [row])
    print(f"How it is doing: python launch/status.py {config.run_folder} --follow")
    if own.json:
        print_json({"job_id": job.job_id, "nodes": allocation.nodes, "ranks": allocation.ranks, **_run_fields(config)})
    return 0


def here(cluster: str) -> dict[str, Any]:
    """What replaces the allocation's defaults where there is no cluster: this machine."""
    if cluster == "slurm":
        return {}
    return {"gpus_per_node": min(1, gpus()) if cluster == "debug" else gpus(), "time": "30-00:00:00"}


def check(config: Config, allocation: Allocation, cluster: str) -> None:
    """Everything that can be known before a job waits in the queue for it. Raises UserError."""
    if cluster != "slurm" and allocation.nodes != 1:
        raise UserError(f"--cluster {cluster} is this machine alone, --nodes is {allocation.nodes}: leave --nodes out")
    if cluster == "debug" and allocation.ranks != 1:
        raise UserError(
            f"--cluster debug trains in this process, {allocation.ranks} ranks were asked for: use --cluster local"
        )
    plan_groups(config.batch, config.bn_group, 0, allocation.ranks)


def submitit_folder(config: Config) -> Path:
    return (config.run_folder / "slurm").absolute()


def make_folder(config: Config) -> Path:
    """submitit's folder of this run: scripts, pickles and logs, for its owner alone, since a pickle is code."""
    folder = submitit_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    return folder


def script(config: Config, allocation: Allocation) -> str:
    """The sbatch script, exactly as submitit submits it."""
    folder = submitit_folder(config)
    executor = _Script(folder, max_num_timeout=STOPS)
    executor.update_parameters(**allocation.sbatch_parameters(config.run_name, folder))
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def show(config: Config, allocation: Allocation, as_json: bool) -> int:
    """`--dry-run`."""
    text = script(config, allocation)
    print(f"# The script for sbatch\n{text}\n# The resolved config\n{to_yaml(config)}")
    print(f"Nothing was submitted. {allocation.nodes} nodes, {allocation.ranks} ranks, run folder {config.run_folder}")
    if as_json:
        print_json({"nodes": allocation.nodes, "ranks": allocation.ranks, "script": text, **_run_fields(config)})
    return 0


def submit(config: Config, allocation: Allocation, folder: Path) -> submitit.Job[int]:
    """Hand the job to SLURM. Raises UserError with sbatch's own words where it refuses."""
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=STOPS)
    parameters = allocation.sbatch_parameters(config.run_name, folder)
    executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what the error says
            return executor.submit(Job(config))
    except (FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        reason = " ".join(str(error).split()) or "it gave no reason"
        for leftover in (*folder.glob(".submission_file_*"), *folder.glob("[0-9a-f]" * 32 + ".pkl")):
            leftover.unlink(missing_ok=True)
        raise UserError(f"sbatch refused the job: {reason.removeprefix('sbatch: error: ')}") from None


def train_here(config: Config, allocation: Allocation, cluster: str, folder: Path) -> int:
    """Train under submitit's local or debug executor and wait for the end; the exit code."""
    executor = submitit.AutoExecutor(folder, cluster=cluster)
    executor.update_parameters(
        timeout_min=allocation.minutes,
        tasks_per_node=allocation.ranks,
        gpus_per_node=allocation.gpus_per_node,
        local_setup=list(allocation.setup),
    )
    job = executor.submit(Job(config))
    if cluster == "debug":
        return int(job.results()[0])
    print(f"training in {allocation.ranks} processes; logs: {job.paths.stdout}", file=sys.stderr)
    try:
        with following(job.task(0).paths.stderr):
            job.wait()
    except KeyboardInterrupt:
        job.cancel()
        job.wait()
        raise
    return outcome(config, job)


def outcome(config: Config, job: submitit.Job[int]) -> int:
    """Exit code of a local job that has ended; prints the cause where it failed."""
    if all(task.paths.result_pickle.exists() for task in map(job.task, range(job.num_tasks))):
        lines = job.task(0).paths.stdout.read_text().splitlines()
        print("\n".join(line for line in lines if not line.startswith("submitit ")))
        return 0
    failures = read_notes(config.run_folder / "logs", f"{job.job_id}.0")
    if not failures:
        print(f"error: the job ended without a result, its logs are in {job.paths.folder}", file=sys.stderr)
        return EXIT_FAILED
    return conclude(failures)


def _run_fields(config: Config) -> dict[str, str]:
    return {"name": config.run_name, "run_folder": str(config.run_folder)}


if __name__ == "__main__":
    command.run(run)
