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
from typing import TYPE_CHECKING

from launch.on_slurm.attempt import slurm_variables
from launch.ranks.supervisor import supervise
from launch.ranks.work import EVALUATE, EVALUATE_HELP, split_arguments
from pipeline.base import command
from pipeline.base.attempt import LAUNCHER_VARIABLE
from pipeline.base.command import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "python launch/local.py --config configs/demo.yaml --procs 2"


def options() -> ArgumentParser:
    """The command line: the config's values and `--procs`. Imports torch."""
    from pipeline.run.options import parser

    made = parser("Trains one net on this machine, or goes on with its run.", EXAMPLE)
    made.add_argument("--procs", type=int, help="processes (ranks); default: one per GPU, or 1 without a GPU")
    made.add_argument("--json", action="store_true", help="end with one line of JSON")
    made.add_argument("--evaluate", type=str, metavar="RUN ...", help=EVALUATE_HELP)
    return made


def run(argv: Sequence[str] | None = None) -> int:
    """Start the ranks and wait for them; the exit code of pipeline.base.command's conventions."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words, testing = split_arguments(argv)
    if testing is None and {"-h", "--help", "--print-config"} & set(words):
        return _show(words)
    procs = _procs(words, alone=testing is not None)
    rank = [sys.executable, "-m", "launch.ranks.worker", *argv]
    with reserve_port() as port:
        return supervise([rank] * procs, [rank_environment(number, procs, port) for number in range(procs)])


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """This process's environment with torchrun's names for rank `rank` of `size` on this machine alone."""
    names = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        LAUNCHER_VARIABLE: "local",
        **slurm_variables(),
    }
    # Ranks of one machine need no network: no host name to resolve, no port open to others.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"}
    return {**loopback, **os.environ, **{name: str(value) for name, value in names.items()}}


@contextmanager
def reserve_port() -> Iterator[int]:
    """A TCP port of this machine that the kernel gives to nobody else while the block runs.

    Rank 0 needs seconds until it listens there; a port that is merely free can be another program's by then. This socket
    is bound, to every address, and never listens. A server that asks for this very port still gets it if it sets
    SO_REUSEADDR, too: torch's TCPStore and Python's servers do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])


def _procs(argv: Sequence[str], alone: bool) -> int:
    """`--procs`, read without the config's parser, whose import of torch would delay every rank by 5 s.

    `alone`: there may be no other option.
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--procs")
    try:
        own, others = reader.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UserError("--procs needs a number: --procs 2") from None
    if alone and others:
        raise UserError(
            f"{others[0]} has no place before {EVALUATE}: only --procs has, pipeline.evaluate's options follow it"
        )
    text = own.procs
    if text is None:
        return gpus() or 1
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--procs is '{text}': give the number of processes, at least 1")
    return int(text)


def gpus() -> int:
    """NVIDIA GPUs this process may use; torch is asked only where there is a driver."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return 0
    import torch

    return torch.cuda.device_count()


def _show(argv: Sequence[str]) -> int:
    from pipeline.run.config import to_yaml
    from pipeline.run.options import parse

    config, _ = parse(options(), argv)  # --help ends here
    print(to_yaml(config), end="")
    return 0


if __name__ == "__main__":
    command.run(run)
