"""The world of one rank, and functions run on several real ranks: processes of this machine in a gloo group."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from launch.local import rank_environment, reserve_port
from pipeline.process.world import World, open_world, set_threads
from tests.patience import limit

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["torch", "torch.distributed", "torchvision", "torch._dynamo", "pipeline.train"]


def start_server() -> None:
    """Start the process that ranks are forked from; it imports in the background what they need.

    A process has one such server, which keeps the imports that it was started with: started by the workers of a
    preparation (data_prep/workers.py) first, it would leave two CPU seconds of imports to every rank.
    """
    if getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None) is not None:
        return
    CONTEXT.set_forkserver_preload(PRELOAD)
    # What ranks print is for nobody (a rank's error comes through its pipe, a Fleet's words go to its logs).
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """`function(world, *arguments)` on `size` ranks with one thread each; what each returned, by rank.

    timeout: how long to wait for a rank's answer, seconds on a quiet machine (tests/patience.py).
    """
    start_server()
    timeout = limit(timeout)
    ranks = []
    results = []
    with reserve_port() as port:
        for rank in range(size):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_rank, args=(rank, size, port, sender, function, arguments), daemon=True)
            process.start()
            sender.close()
            ranks.append((process, receiver))
        try:
            for rank, (_, receiver) in enumerate(ranks):
                assert receiver.poll(timeout), f"rank {rank} did not answer within {timeout:.0f} s"
                succeeded, result = receiver.recv()
                assert succeeded, f"rank {rank} failed:\n{result}"
                results.append(result)
        finally:
            for process, _ in ranks:
                process.join(limit(5))
                process.kill()
    return results


def _rank(rank: int, size: int, port: int, sender: Connection, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= rank_environment(rank, size, port)
    try:
        with open_world("cpu", timeout_seconds=limit(60)) as world:
            set_threads(world, 1)
            sender.send((True, function(world, *arguments)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
