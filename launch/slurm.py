"""Train on a SLURM cluster, by submitit: one task per GPU.

python launch/slurm.py --arch resnet152 --nodes 4
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from jsonargparse import ArgumentParser
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch.allocation import Allocation, add_options, has_slurm, resolve
from launch.failure import EXIT_FAILED, conclude, read_notes
from launch.follow import following
from launch.job import Job
from launch.local import gpus
from launch.plan import show_plan
from launch.scheduler import check_partition
from launch.several import EvaluateEnsemble, folder_of_evaluation, members
from pipeline import command
from pipeline.command import UserError, print_json, print_table
from pipeline.config import Config, parse, parser, to_yaml
from pipeline.data.dataset import Dataset
from pipeline.summary import summary
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
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print the sbatch script, the config and the plan (hours, GPU hours, scaling); submit nothing",
    )
    made.add_argument("--array-of-archs", type=str, help="one job for each of these nets: resnet18,resnet34,resnet50")
    made.add_argument(
        "--ensemble", action="store_true", help="the six nets of an ensemble, and its evaluation after them"
    )
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
    configs = members(config, own.array_of_archs, own.ensemble)
    for one in configs:
        check(one, allocation, cluster)
    if own.dry_run:
        return show(configs, allocation, own.json)
    if cluster != "slurm":
        return here_one_by_one(configs, allocation, cluster, own.json)
    if not has_slurm():
        raise UserError(
            "there is no SLURM on this machine (sbatch and srun are not on PATH): run this on a login node of the cluster, "
            "or add --dry-run, or --cluster local to train here"
        )
    check_partition(allocation)
    Dataset(config.data)  # readable here, of a format we know
    jobs = [submit(Job(one), one.run_name, make_folder(submitit_folder(one)), allocation) for one in configs]
    evaluation = submit_evaluation(config, configs, jobs, allocation) if own.ensemble else None
    columns = ("job", "name", "nodes", "ranks", "time limit", "run folder")
    rows = [
        (job, one.run_name, allocation.nodes, allocation.ranks, allocation.time, one.run_folder)
        for job, one in zip(jobs, configs, strict=True)
    ]
    if evaluation:
        rows.append((evaluation, "evaluation", 1, 1, allocation.time, folder_of_evaluation(config).parent))
    print_table("submitted", columns, rows)
    print(f"How it is doing: python launch/status.py {configs[0].run_folder} --follow")
    if own.json:
        figures = {"nodes": allocation.nodes, "ranks": allocation.ranks, **_run_fields(configs[0])}
        print_json({"job_id": jobs[0], "jobs": jobs, "evaluation": evaluation, **figures})
    return 0


def here_one_by_one(configs: Sequence[Config], allocation: Allocation, cluster: str, as_json: bool) -> int:
    """`--cluster local|debug`: train one net after the other; the first exit code that is not 0."""
    for config in configs:
        code = train_here(config, allocation, cluster, make_folder(submitit_folder(config)))
        if as_json:
            print_json(summary(config, code))
        if code:
            return code
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


def make_folder(folder: Path) -> Path:
    """submitit's folder: scripts, pickles and logs, for its owner alone, since a pickle is code."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    return folder


def script(config: Config, allocation: Allocation) -> str:
    """The sbatch script, exactly as submitit submits it."""
    folder = submitit_folder(config)
    executor = _Script(folder, max_num_timeout=STOPS)
    executor.update_parameters(**allocation.sbatch_parameters(config.run_name, folder))
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def show(configs: Sequence[Config], allocation: Allocation, as_json: bool) -> int:
    """`--dry-run`."""
    figures: list[dict[str, Any]] = []
    for config in configs:
        text = script(config, allocation)
        print(f"# The script for sbatch\n{text}\n# The resolved config\n{to_yaml(config)}")
        plan = show_plan(config, allocation)
        figures.append({"ranks": allocation.ranks, "script": text, "plan": plan, **_run_fields(config)})
    names = ", ".join(str(config.run_folder) for config in configs)
    print(f"Nothing was submitted. {allocation.nodes} nodes, {allocation.ranks} ranks; {names}")
    if as_json:
        print_json({"nodes": allocation.nodes, **figures[0], "runs": figures})
    return 0


def submit(work: Callable[[], Any], name: str, folder: Path, allocation: Allocation, after: Sequence[str] = ()) -> str:
    """Hand one job to SLURM, to start after those in `after` have ended well; its id.

    Raises UserError with sbatch's own words where it refuses.
    """
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=STOPS)
    parameters = allocation.sbatch_parameters(name, folder)
    if after:
        parameters["additional_parameters"] |= {"dependency": f"afterok:{':'.join(after)}"}
    executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what the error says
            return str(executor.submit(work).job_id)
    except (FailedSubmissionError, FailedJobError) as error:
        for leftover in (*folder.glob(".submission_file_*"), *folder.glob("[0-9a-f]" * 32 + ".pkl")):
            leftover.unlink(missing_ok=True)
        reason = " ".join(str(error).split()) or "it gave no reason"
        raise UserError(f"sbatch refused the job: {reason.removeprefix('sbatch: error: ')}") from None


def submit_evaluation(config: Config, trained: Sequence[Config], jobs: Sequence[str], allocation: Allocation) -> str:
    """The job that scores the ensemble once its members are trained: one task, one GPU."""
    runs = tuple(str(one.run_folder.absolute()) for one in trained)
    one_task = replace(allocation, nodes=1, gpus_per_node=min(1, allocation.gpus_per_node), tasks_per_node=1)
    work = EvaluateEnsemble(runs, str(Path(config.runs).absolute()))
    folder = make_folder(folder_of_evaluation(config))
    return submit(work, f"{config.name or 'ensemble'}-evaluation", folder, one_task, jobs)


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
