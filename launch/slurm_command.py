"""Submit one command to SLURM, as one task with one GPU, to start after other jobs have ended well.

python launch/slurm_command.py --name scores --folder runs/resnet50-seed0/evaluation/slurm --after 17 -- \\
    python -m pipeline.evaluate runs/resnet50-seed0 --protocol ten-crop
"""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin("")

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.on_slurm.allocation import add_options, resolve
from launch.on_slurm.sbatch import spelled
from launch.on_slurm.submission import submit
from launch.ranks.work import Command
from launch.site import add_site_option, site_values
from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.layout import SLURM
from pipeline.base.parsing import CommandParser
from pipeline.base.tables import print_json, print_table

# Taken, because experiments hand on what their trainings get, and without effect on one task: --help leaves them out.
WITHOUT_EFFECT = ("nodes", "tasks_per_node", "network_gbits", "device_name", "rates", "images_per_second")
EXAMPLE = "python launch/slurm_command.py --name scores --folder scores --after 17 -- python -m pipeline.evaluate RUN"


def options() -> CommandParser:
    parser = CommandParser("Submits the command behind '--' to SLURM, as one task with one GPU.", EXAMPLE)
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--folder", type=Path, required=True, help="its script and logs are kept in slurm/ there")
    parser.add_argument("--after", default="", metavar="JOB,JOB", help="start after these jobs have ended well")
    add_options(parser)
    for action in parser._actions:
        if action.dest in WITHOUT_EFFECT:
            action.help = argparse.SUPPRESS
    add_site_option(parser)
    parser.add_json_option()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    args, words = options().parse_args(spelled(argv[:split])), argv[split + 1 :]
    if not words:
        raise UserError("there is no command to submit: put it behind '--'")
    after = [job for job in args.after.split(",") if job]
    if not all(re.fullmatch(r"[0-9]+", job) for job in after) or not re.fullmatch(r"[A-Za-z0-9._-]+", args.name):
        raise UserError("--after takes job numbers such as 17,18, and --name letters, digits and . _ -")
    allocation = resolve(vars(args), site_values(args.site)).with_one_task()
    folder = (args.folder.parent if args.folder.name == SLURM else args.folder).absolute()
    job = submit(Command(args.name, folder, tuple(words)), allocation, after)
    print_table("submitted", ("job", "name", "after"), [(job, args.name, ", ".join(after) or "-")])
    if args.json:
        print_json({"job_id": job, "name": args.name, "after": after})
    return 0


if __name__ == "__main__":
    command.run(main, kept=True)
