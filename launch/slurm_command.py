"""Submit one command to SLURM, as one task with one GPU, to start after other jobs have ended well.

python launch/slurm_command.py --name scores --folder runs/resnet50-seed0/evaluation/slurm --after 17 -- \\
    python -m pipeline.evaluate runs/resnet50-seed0 --protocol ten-crop
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.on_slurm.allocation import add_options, has_slurm, resolve
from launch.on_slurm.scheduler import check_partition
from launch.on_slurm.several import Command
from launch.on_slurm.submission import submit
from launch.on_slurm.visibility import check_shared
from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.base.layout import SLURM

EXAMPLE = (
    "python launch/slurm_command.py --name scores --folder scores/slurm --after 17 -- python -m pipeline.evaluate RUN"
)


def options() -> CommandParser:
    made = CommandParser("Submits the command behind '--' to SLURM, as one task with one GPU.", EXAMPLE)
    made.add_argument("--name", required=True, help="of the job")
    made.add_argument("--folder", type=Path, required=True, help="its script and logs are kept in slurm/ there")
    made.add_argument("--after", default="", metavar="JOB,JOB", help="start after these jobs have ended well")
    add_options(made)
    made.add_json_option()
    return made


def run(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    own, work = options().parse_args(words[:split]), words[split + 1 :]
    if not work:
        raise UserError("there is no command to submit: put it behind '--'")
    after = [job for job in own.after.split(",") if job]
    if not all(re.fullmatch(r"[0-9]+", job) for job in after) or not re.fullmatch(r"[A-Za-z0-9._-]+", own.name):
        raise UserError("--after takes job numbers such as 17,18, and --name letters, digits and . _ -")
    if not has_slurm():
        raise UserError("there is no SLURM on this machine (sbatch and srun are not on PATH): run this on a login node")
    asked = resolve(vars(own))
    allocation = replace(asked, nodes=1, gpus_per_node=min(1, asked.gpus_per_node), tasks_per_node=1)
    check_partition(allocation)
    folder = (own.folder.parent if own.folder.name == SLURM else own.folder).absolute()
    check_shared(allocation, [folder])
    job = submit(Command(own.name, folder, tuple(work)), allocation, after)
    print_table("submitted", ("job", "name", "after"), [(job, own.name, ", ".join(after) or "-")])
    if own.json:
        print_json({"job_id": job, "name": own.name, "after": after})
    return 0


if __name__ == "__main__":
    command.run(run)
