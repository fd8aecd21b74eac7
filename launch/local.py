"""Train on this machine: several processes, one per GPU (or as many as asked for on the CPU).

python launch/local.py --config configs/demo.yaml --procs 2
python launch/local.py --procs 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.on_slurm.attempt import slurm_variables
from launch.ranks.command_line import EVALUATE, CommandLine, read_work, split_arguments
from launch.ranks.supervisor import supervise
from pipeline.base import command
from pipeline.base.attempt import LAUNCHER_VARIABLE
from pipeline.base.command import UserError
from pipeline.base.starting import begin, with_targets
from pipeline.base.stopping import say
from pipeline.run.help import HELP_ALL
from pipeline.run.preview import training_line


def add_local_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--procs", type=int, help="processes (ranks); default: one per GPU, or 1 without a GPU")


COMMAND_LINE = CommandLine(
    training=(
        "Trains one net on this machine, or continues its run.",
        "python launch/local.py --config configs/demo.yaml --procs 2",
    ),
    evaluation=(
        "Tests one net on this machine.",
        "python launch/local.py --procs 2 --evaluate demo/runs/resnet14-seed0 --protocol ten-crop",
    ),
    add_options=add_local_options,
    first=("--procs",),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks and wait for them; the exit code, by the conventions of pipeline.base.command.

    Each rank reads the command line itself (launch/ranks/worker.py): its import of torch would delay them all by 5 s here.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    words, evaluation = split_arguments(argv)
    if evaluation is None and {"-h", "--help", HELP_ALL, "--print-config"} & set(words):
        read_work(argv, COMMAND_LINE)  # prints; --help ends there
        return 0
    procs = _procs(words, alone=evaluation is not None)
    start = "starting 1 process" if procs == 1 else f"starting {procs} processes"
    say(training_line(words, start) if evaluation is None else with_targets(f"{start}: testing", evaluation, "a net"))
    rank = [sys.executable, "-m", "launch.ranks.worker", *argv]
    with reserve_port() as port:
        return supervise([rank] * procs, [rank_environment(number, procs, port) for number in range(procs)])


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """This process's environment with torchrun's names for rank `rank` of `size` on this machine alone."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    names = {name: str(number) for name, number in numbers.items()}
    # Ranks of one machine need no network: no host name to resolve, no port open to others (pipeline/process/meeting.py).
    names |= {"MASTER_ADDR": "127.0.0.1", LAUNCHER_VARIABLE: "local", **slurm_variables()}
    return {**os.environ, **names}


@contextmanager
def reserve_port() -> Iterator[int]:
    """A TCP port of this machine that the kernel gives to nobody else while the block runs.

    Rank 0 needs seconds until it listens there; a port that is merely free can be another program's by then. The socket
    here is bound to every address and never listens. A server that asks for this very port still gets it if the server
    sets SO_REUSEADDR too, as rank 0, torch's TCPStore and Python's servers do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])


def _procs(argv: Sequence[str], alone: bool) -> int:
    """`--procs`, read without the config's parser, which imports torch. `alone`: there must be no other option."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--procs")
    try:
        args, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UserError("--procs needs a number: --procs 2") from None
    if alone and others:
        rule = "only --procs can, the options of pipeline.evaluate follow it"
        raise UserError(f"{others[0]} cannot stand before {EVALUATE}: {rule}")
    if args.procs is None:
        return gpus() or 1
    if not args.procs.isdigit() or int(args.procs) < 1:
        raise UserError(f"--procs is '{args.procs}': give the number of processes, at least 1")
    return int(args.procs)


def gpus() -> int:
    """How many NVIDIA GPUs torch can use here. Imports torch only where there is a driver."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return 0
    from pipeline.process.gpus import usable

    return usable()


if __name__ == "__main__":
    begin("", saves=True)  # until the ranks are there
    COMMAND_LINE.answer_help()
    command.run(main, kept=True)
