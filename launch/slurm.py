"""Train on a SLURM cluster, by submitit: one task per GPU.

python launch/slurm.py --arch resnet152 --nodes 4
python launch/slurm.py --nodes 1 --evaluate runs/resnet152-seed0 --protocol ten-crop
"""

from __future__ import annotations

from launch.on_slurm.command_line import COMMAND_LINE, is_here
from pipeline.base.starting import begin
from pipeline.run.preview import launcher_line

if __name__ == "__main__":  # before the imports below, which take seconds
    begin(lambda words: launcher_line(words, "starting" if is_here(words) else "submitting"))
    COMMAND_LINE.answer_help()

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.forecast.plan import show_plan
from launch.local import gpus
from launch.on_slurm.allocation import Allocation, resolve
from launch.on_slurm.submission import run_here, script, submit
from launch.on_slurm.visibility import check_shared
from launch.ranks.command_line import read_work
from launch.ranks.work import Evaluation, Training, Work
from launch.site import site_values
from pipeline.base import command
from pipeline.base.command import UserError, check_printed
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.storage import open_dataset
from pipeline.initial.start import settle
from pipeline.run.config import to_yaml
from pipeline.run.folder import check_same

QUEUED = "interrupted before the end: 'squeue --me' shows whether a job was submitted"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit the work (`--cluster slurm`), or do it under submitit's local or debug executor; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    refuse_removed_options(words)
    asked = read_work(words, COMMAND_LINE)
    if asked is None:
        return 0
    work, args = asked
    cluster = args.cluster or "slurm"
    allocation = resolve(vars(args), site_values(args.site), defaults_of(cluster))
    check_cluster(allocation, cluster)
    if cluster != "slurm" and args.sbatch:
        raise UserError(f"--cluster {cluster} asks nothing of sbatch: leave its options out ({', '.join(args.sbatch)})")
    if allocation.gpus:
        work = work.settled("cuda")  # a job that has GPUs does not fall back to the CPU
    elif cluster == "slurm" or args.gpus_per_node is not None:
        work = work.settled("cpu")  # the node's GPUs are another job's, though a site may show them to all
    if isinstance(work, Training):
        work.check_ranks(allocation.ranks)
    else:
        work.check_inputs()
    if args.dry_run:
        code = show(work, allocation, args.json)
        check_printed()
        return code
    if cluster != "slurm":
        code = run_here(work, allocation, cluster)
        if args.json and isinstance(work, Training):
            work.print_summary(code)
        return code
    if isinstance(work, Training):
        # The dataset can be read here, and the job would not refuse the run after its time in the queue.
        dataset = open_dataset(work.config.data)
        start = settle(work.config, dataset)
        check_same(start.config, dataset)
        if start.point is not None:
            check_shared(allocation, [Path(start.point.file)])
    print_result(submit(work, allocation), work, allocation, args.json)
    return 0


def refuse_removed_options(words: Sequence[str]) -> None:
    """Raise UserError, with what does the same now, for an option that is gone."""
    for option in (word.partition("=")[0] for word in words):
        if option == "--ensemble":
            raise UserError(
                "--ensemble is gone: 'python -m pipeline.experiment table5 --launcher slurm' trains, tests and averages the "
                "paper's ensemble"
            )
        if option == "--array-of-archs":
            raise UserError(
                "--array-of-archs is gone: submit each net by its own command, "
                "'for arch in resnet18 resnet34; do python launch/slurm.py --arch $arch; done'"
            )


def defaults_of(cluster: str) -> dict[str, Any]:
    """What replaces the allocation's defaults where there is no cluster: this machine."""
    if cluster == "slurm":
        return {}
    return {"gpus_per_node": min(1, gpus()) if cluster == "debug" else gpus(), "time": "30-00:00:00"}


def check_cluster(allocation: Allocation, cluster: str) -> None:
    """Raise UserError for an allocation that this kind of cluster cannot give."""
    if cluster != "slurm" and allocation.nodes != 1:
        raise UserError(f"--cluster {cluster} is this machine alone, --nodes is {allocation.nodes}: leave --nodes out")
    if cluster == "debug" and allocation.ranks != 1:
        ranks = f"{allocation.ranks} ranks were asked for"
        raise UserError(f"--cluster debug works in this process, {ranks}: use --cluster local")


def show(work: Training | Evaluation, allocation: Allocation, as_json: bool) -> int:
    """What `--dry-run` prints. For a training this needs neither the dataset nor a network."""
    text = script(work, allocation)
    if isinstance(work, Evaluation):
        print(f"# The script for sbatch\n{text}\nNothing was submitted.")
        return 0
    config = work.config
    at_hand = os.path.isfile(os.path.join(config.data, MANIFEST))
    dataset = Dataset(config.data) if at_hand else None
    check_same(config, dataset)
    train_split = dataset.manifest.splits.get("train") if dataset else None
    print(f"# The script for sbatch\n{text}\n# The resolved config\n{to_yaml(config)}")
    plan = show_plan(config, allocation, train_split.samples if train_split else None)
    print(f"Nothing was submitted. {allocation.nodes} nodes, {allocation.ranks} ranks; {config.run_folder}")
    if as_json:
        run = {"name": config.run_name, "run_folder": str(config.run_folder)}
        print_json({"nodes": allocation.nodes, "ranks": allocation.ranks, "script": text, "plan": plan, **run})
    return 0


def print_result(job: str, work: Work, allocation: Allocation, as_json: bool) -> None:
    """Print what was submitted."""
    # As its user would type the folder: relative where it lies below the working directory.
    folder = work.folder.relative_to(Path.cwd()) if work.folder.is_relative_to(Path.cwd()) else work.folder
    row = (job, work.name, allocation.nodes, allocation.ranks, allocation.time, folder)
    print_table("submitted", ("job", "name", "nodes", "ranks", "time limit", "folder"), [row])
    print(f"How it is doing: python launch/status.py {folder} --follow")
    if as_json:
        fields = {"nodes": allocation.nodes, "ranks": allocation.ranks, "name": work.name}
        print_json({"job_id": job, **fields, "run_folder": str(folder)})


if __name__ == "__main__":
    command.run(main, command.BEGINS_ANEW if is_here(sys.argv) else QUEUED, kept=True)
