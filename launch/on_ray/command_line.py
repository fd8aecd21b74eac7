"""The command line of launch/ray_train.py. Imports no torch: --help appears at once."""

from __future__ import annotations

from argparse import ArgumentParser

from launch.ranks.command_line import CommandLine


def add_ray_options(parser: ArgumentParser) -> None:
    workers = "N, or MIN:MAX to follow a cluster that grows and shrinks (default: 1 per GPU)"
    parser.add_argument("--workers", type=str, help=workers)
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="cores that Ray reserves for each worker")
    parser.add_argument("--address", type=str, help="a running cluster: auto, or HOST:PORT (default: this machine)")
    failures = "restarts after a lost worker or node; -1: no limit"
    parser.add_argument("--max-failures", type=int, default=3, help=failures)


COMMAND_LINE = CommandLine(
    training=(
        "Trains one net by Ray Train, or continues its run.",
        "python launch/ray_train.py --config configs/demo.yaml --workers 2",
    ),
    evaluation=(
        "Tests one net on Ray's workers.",
        "python launch/ray_train.py --workers 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop",
    ),
    add_options=add_ray_options,
    first=("--workers", "--address"),
)
