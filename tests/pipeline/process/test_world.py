"""Ranks meet before one goes on, know their share of the cores, and do not wait for a rank that failed. Several real ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from launch.local import reserve_port
from pipeline.base.command import UserError
from pipeline.base.leaving import cleanup_is_skipped
from pipeline.process import gpus
from pipeline.process.stop import StopRequest
from pipeline.process.world import Machine, World, on_main, open_world, set_threads
from pipeline.training.reduction import GradientReducer
from pipeline.training.synced_batchnorm import share_normalization
from tests.ranks import run_ranks

KEPT: list[AbstractContextManager[World]] = []  # what would close its group if nobody held it


def open_anew(world: World, port: int) -> None:
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    KEPT.append(open_world("cpu"))
    KEPT[0].__enter__()


def meet_for_stops(world: World, port: int) -> None:
    StopRequest().meet(world)


def share_statistics(world: World, port: int) -> None:
    share_normalization(nn.BatchNorm2d(1), world.size)


def add_gradients(world: World, port: int) -> None:
    GradientReducer([nn.Parameter()], "allreduce", world)


def slowly(make: Callable[..., Any], seconds: float, connected: list[float]) -> Callable[..., Any]:
    """Return `make`, which connects a group, with `seconds` more at its end; then it appends the time to `connected`."""

    def slow(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        time.sleep(seconds)
        connected.append(time.monotonic())
        return made

    return slow


def make_a_group(world: World, make: Callable[[World, int], None], port: int) -> tuple[float, float]:
    """Return when this rank was connected and when it went on, by the host's clock; rank 1 takes longer to connect."""
    connected: list[float] = []
    seconds = 0.5 if world.rank == 1 else 0.0
    dist.init_process_group = slowly(dist.init_process_group, seconds, connected)
    dist.new_group = slowly(dist.new_group, seconds, connected)
    dist.new_subgroups = slowly(dist.new_subgroups, seconds, connected)
    make(world, port)
    return connected[-1], time.monotonic()


@pytest.mark.parametrize("make", [open_anew, meet_for_stops, share_statistics, add_gradients])
def test_a_rank_goes_on_when_all_are_connected(make: Callable[[World, int], None], port: int) -> None:
    moments = run_ranks(3, make_a_group, make, port)
    assert min(went_on for _, went_on in moments) >= max(connected for connected, _ in moments)


def cores_where_tasks_are_bound(world: World, port: int) -> tuple[int, int]:
    """(cores, threads) of a rank whose scheduler gave it eight cores of its own, as SLURM's task/affinity does."""
    os.environ["MASTER_PORT"] = str(port)
    dist.destroy_process_group()
    os.sched_getaffinity = lambda _: set(range(8 * world.rank, 8 * world.rank + 8))
    with open_world("cpu") as again:
        return again.cores, set_threads(again, None)


def test_a_rank_that_is_bound_to_cores_has_them_all(port: int) -> None:
    assert run_ranks(2, cores_where_tasks_are_bound, port) == [(8, 8)] * 2


def machine_among_two(world: World, port: int) -> Machine:
    """What a rank learns of its machine, where ranks 0 and 2 share one and each rank has a GPU and four cores of its own."""
    os.environ["MASTER_PORT"] = str(port)
    dist.destroy_process_group()
    read = Path.read_text
    Path.read_text = lambda path, **how: f"{world.rank % 2}" if path.name == "boot_id" else read(path, **how)  # type: ignore
    gpus.identity = lambda device: f"GPU-{world.rank}"
    os.sched_getaffinity = lambda _: set(range(4 * world.rank, 4 * world.rank + 4))
    with open_world("cpu") as again:
        return again.machine


def test_a_rank_knows_those_of_its_machine(port: int) -> None:
    one = Machine(ranks=(0, 2), gpus=("GPU-0", "GPU-2"), cores=8)
    assert run_ranks(3, machine_among_two, port) == [one, Machine(ranks=(1,), gpus=("GPU-1",), cores=4), one]


def ends_of_a_world(world: World, ports: tuple[int, int]) -> tuple[bool, bool, bool]:
    """Whether the group is open after a block that ended well and after one that failed, and Python's clean-up skipped.

    Each block has a port of its own: rank 1 could meet the first group's store again while rank 0 is closing it.
    """
    dist.destroy_process_group()
    seen = []
    first, second = map(str, ports)
    os.environ["MASTER_PORT"] = first
    with open_world("cpu"):
        pass
    seen.append(dist.is_initialized())
    os.environ["MASTER_PORT"] = second
    with suppress(MemoryError), open_world("cpu"):
        raise MemoryError
    return *seen, dist.is_initialized(), cleanup_is_skipped()  # gloo's threads: pipeline/base/leaving.py


def test_a_group_is_closed_after_a_block_that_ended_well_alone(port: int) -> None:
    with reserve_port() as second:
        assert run_ranks(2, ends_of_a_world, (port, second)) == [(False, True, True)] * 2


def fail_on_main(world: World, error: Exception) -> str:
    def fail() -> None:
        raise error

    try:
        on_main(world, fail)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "went on"


@pytest.mark.parametrize("error", [UserError("no such file"), PermissionError("not yours")], ids=["user's", "other"])
def test_what_fails_on_the_main_rank_ends_every_rank(error: Exception) -> None:
    first, second = run_ranks(2, fail_on_main, error)
    assert first == f"{type(error).__name__}: {error}"
    assert second.startswith("UserError: ") and str(error) in second
