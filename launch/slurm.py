"""Train on a SLURM cluster, by submitit: one task per GPU.

python launch/slurm.py --arch resnet152 --nodes 4
python launch/slurm.py --nodes 1 --evaluate runs/resnet152-seed0 --protocol ten-crop
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from launch.forecast.plan import show_plan
from launch.local import gpus
from launch.on_slurm.allocation import Allocation, add_options, has_slurm, resolve
from launch.on_slurm.scheduler import check_partition
from launch.on_slurm.several import EvaluateEnsemble, members
from launch.on_slurm.submission import all_or_none, run_here, script, submit
from launch.on_slurm.visibility import check_shared
from launch.ranks.work import EVALUATE_HELP, Training, Work, check_readable, evaluation, split_arguments
from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.storage import open_dataset
from pipeline.run.config import Config, to_yaml
from pipeline.run.folder import check_same
from pipeline.run.options import parse, parser
from pipeline.run.summary import summary
from pipeline.training.batchnorm import plan_groups

EXAMPLE = "python launch/slurm.py --arch resnet152 --nodes 4"
EVALUATION_EXAMPLE = "python launch/slurm.py --nodes 1 --evaluate runs/resnet152-seed0 --protocol ten-crop"
CLUSTERS = ("slurm", "local", "debug")


def options() -> ArgumentParser:
    """The command line: the config's values, the allocation's, and where to submit."""
    made = parser("Submits the training of one net to SLURM, or goes on with its run.", EXAMPLE)
    add_options(made)
    _add_shared_options(made)
    made.add_argument("--array-of-archs", type=str, help="one job for each of these nets: resnet18,resnet34,resnet50")
    made.add_argument(
        "--ensemble",
        action="store_true",
        help="the paper's six nets, or those of --array-of-archs, and their evaluation after them",
    )
    made.add_argument("--evaluate", type=str, metavar="RUN ...", help=EVALUATE_HELP)
    return made


def evaluation_options() -> CommandParser:
    """The command line before `--evaluate`."""
    made = CommandParser("Submits the evaluation of one net to SLURM.", EVALUATION_EXAMPLE)
    add_options(made)
    _add_shared_options(made)
    return made


def _add_shared_options(made: Any) -> None:
    made.add_argument(
        "--cluster", choices=CLUSTERS, help="slurm; local: submitit's processes on this machine; debug: in here"
    )
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print the sbatch script, the config and the plan (hours, GPU hours, scaling); submit nothing",
    )
    made.add_argument("--json", action="store_true", help="end with one line of JSON")


def run(argv: Sequence[str] | None = None) -> int:
    """Submit (`--cluster slurm`), or work under submitit's local or debug executor; the exit code."""
    words, testing = split_arguments(sys.argv[1:] if argv is None else argv)
    if testing is not None:
        return run_evaluation(words, testing)
    config, own = parse(options(), words)
    if own.print_config:
        print(to_yaml(config), end="")
        return 0
    cluster = own.cluster or "slurm"
    allocation = resolve(vars(own), here(cluster))
    configs = members(config, own.array_of_archs, own.ensemble)
    check(allocation, cluster)
    for one in configs:
        plan_groups(one.batch, one.bn_group, 0, allocation.ranks)
    if own.dry_run:
        refuse_conflicting(configs, dataset_at_hand(config))
        return show(configs, allocation, own.json)
    if cluster != "slurm":
        return here_one_by_one(configs, allocation, cluster, own.json)
    works = [Training(one) for one in configs]
    # The dataset is readable here, of a format we know.
    refuse_conflicting(configs, open_dataset(config.data))
    check_cluster(allocation, works)
    last = EvaluateEnsemble.of(config, configs)
    with all_or_none() as jobs:
        for work in works:
            jobs.append(submit(work, allocation))
        evaluating = submit(last, one_task(allocation), after=jobs) if own.ensemble else None
    rows = [_row(job, work, allocation) for job, work in zip(jobs, works, strict=True)]
    if evaluating:
        rows.append(_row(evaluating, last, one_task(allocation)))
    return report(rows, works[0], allocation, own.json, jobs=jobs, evaluation=evaluating)


def run_evaluation(words: Sequence[str], testing: Sequence[str]) -> int:
    """`--evaluate`: the ranks of the same allocation score one net."""
    own = evaluation_options().parse_args(list(words))
    cluster = own.cluster or "slurm"
    allocation = resolve(vars(own), here(cluster))
    check(allocation, cluster)
    work = evaluation(testing)
    check_readable(work)
    if own.dry_run:
        print(f"# The script for sbatch\n{script(work, allocation)}\nNothing was submitted.")
        return 0
    if cluster != "slurm":
        return run_here(work, allocation, cluster)
    check_cluster(allocation, [work])
    job = submit(work, allocation)
    return report([_row(job, work, allocation)], work, allocation, own.json, jobs=[job])


def here_one_by_one(configs: Sequence[Config], allocation: Allocation, cluster: str, as_json: bool) -> int:
    """`--cluster local|debug`: train one net after the other; the first exit code that is not 0."""
    for config in configs:
        code = run_here(Training(config), allocation, cluster)
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


def check(allocation: Allocation, cluster: str) -> None:
    """Raise UserError for an allocation that this kind of cluster cannot give."""
    if cluster != "slurm" and allocation.nodes != 1:
        raise UserError(f"--cluster {cluster} is this machine alone, --nodes is {allocation.nodes}: leave --nodes out")
    if cluster == "debug" and allocation.ranks != 1:
        raise UserError(
            f"--cluster debug works in this process, {allocation.ranks} ranks were asked for: use --cluster local"
        )


def refuse_conflicting(configs: Sequence[Config], dataset: Dataset | None) -> None:
    """Raise UserError for a run that its job would refuse after its time in the queue."""
    for config in configs:
        check_same(config, dataset)


def dataset_at_hand(config: Config) -> Dataset | None:
    """The dataset where its folder is on this machine, else None: a dry run needs neither a dataset nor a network."""
    return Dataset(config.data) if os.path.isfile(os.path.join(config.data, MANIFEST)) else None


def check_cluster(allocation: Allocation, works: Sequence[Work]) -> None:
    """Everything else that can be known before a job waits in the queue for it. Raises UserError."""
    if not has_slurm():
        raise UserError(
            "there is no SLURM on this machine (sbatch and srun are not on PATH): run this on a login node of the cluster, "
            "or add --dry-run, or --cluster local to work here"
        )
    check_partition(allocation)
    for work in works:
        check_shared(allocation, [work.folder, *work.inputs])


def one_task(allocation: Allocation) -> Allocation:
    return replace(allocation, nodes=1, gpus_per_node=min(1, allocation.gpus_per_node), tasks_per_node=1)


def show(configs: Sequence[Config], allocation: Allocation, as_json: bool) -> int:
    """`--dry-run`."""
    figures: list[dict[str, Any]] = []
    for config in configs:
        text = script(Training(config), allocation)
        print(f"# The script for sbatch\n{text}\n# The resolved config\n{to_yaml(config)}")
        plan = show_plan(config, allocation)
        run = {"name": config.run_name, "run_folder": str(config.run_folder)}
        figures.append({"ranks": allocation.ranks, "script": text, "plan": plan, **run})
    names = ", ".join(str(config.run_folder) for config in configs)
    print(f"Nothing was submitted. {allocation.nodes} nodes, {allocation.ranks} ranks; {names}")
    if as_json:
        print_json({"nodes": allocation.nodes, **figures[0], "runs": figures})
    return 0


def report(rows: Sequence[Sequence[object]], first: Work, allocation: Allocation, as_json: bool, **jobs: Any) -> int:
    """The closing table of what was submitted."""
    print_table("submitted", ("job", "name", "nodes", "ranks", "time limit", "folder"), rows)
    print(f"How it is doing: python launch/status.py {_short(first.folder)} --follow")
    if as_json:
        fields = {"nodes": allocation.nodes, "ranks": allocation.ranks, "name": first.name}
        print_json({"job_id": rows[0][0], **jobs, **fields, "run_folder": str(_short(first.folder))})
    return 0


def _row(job: str, work: Work, allocation: Allocation) -> tuple[object, ...]:
    folder = _short(work.folder)
    return (job, work.name, allocation.nodes, allocation.ranks, allocation.time, folder)


def _short(folder: Path) -> Path:
    """As its user would type it: relative where it lies below the working directory."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


if __name__ == "__main__":
    command.run(run)
