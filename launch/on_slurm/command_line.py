"""The command line of launch/slurm.py. Imports no torch: --help appears at once."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from launch.on_slurm.allocation import add_options
from launch.on_slurm.sbatch import spelled
from launch.ranks.command_line import CommandLine

CLUSTERS = ("slurm", "local", "debug")


def add_slurm_options(parser: ArgumentParser) -> None:
    """The allocation's values, and where to submit."""
    add_options(parser)
    kinds = "slurm; local: submitit's processes on this machine; debug: in this process"
    parser.add_argument("--cluster", choices=CLUSTERS, help=kinds)
    dry_run = "print the sbatch script, the config and the plan (hours, GPU hours, scaling); submit nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


COMMAND_LINE = CommandLine(
    training=(
        "Submits the training of one net to SLURM, or continues its run.",
        "python launch/slurm.py --arch resnet152 --nodes 4",
    ),
    evaluation=(
        "Submits the evaluation of one net to SLURM.",
        "python launch/slurm.py --nodes 1 --evaluate runs/resnet152-seed0 --protocol ten-crop",
    ),
    add_options=add_slurm_options,
    first=("--nodes", "--gpus-per-node", "--partition", "--account", "--time", "--dry-run"),
    submits=True,
    spelled=spelled,
)


def is_here(words: Sequence[str]) -> bool:
    """Whether a command line asks for this machine: --cluster local or debug."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cluster", nargs="?")
    return parser.parse_known_args(list(words))[0].cluster in CLUSTERS[1:]
