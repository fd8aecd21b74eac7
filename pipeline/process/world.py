"""Reads torchrun's environment variables into a `World` (rank, size, device) and opens the process group.

Every launcher (torchrun, launch/local.py, submitit, Ray Train) sets the same variables: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. A process group that is already open is adopted, not replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from pipeline.base.command import UserError
from pipeline.base.cores import available_cores, cores_together, share_of_cores
from pipeline.base.leaving import skip_cleanup
from pipeline.process import gpus
from pipeline.process.meeting import MeetingPlace, stay_on_this_machine
from pipeline.process.watchdog import COLLECTIVE_GRACE_SECONDS, Watchdog

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the ranks of one machine have together: `ranks`, their numbers; `gpus`, the identities of their GPUs; `cores`."""

    ranks: tuple[int, ...] = (0,)
    gpus: tuple[str, ...] = ()
    cores: int = field(default_factory=available_cores)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process: `rank` of `size` in all, `local_rank` of `local_size` on this host, computing on `device`.

    `cores`: this rank's share of the host's. `machine`: what this rank and the others of its machine have together.
    `hosts`: the names of all ranks' hosts, by rank; empty where there is one rank.
    `watchdog` keeps the notes of what this rank does.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    cores: int = field(default_factory=available_cores)
    machine: Machine = field(default_factory=Machine)
    hosts: tuple[str, ...] = ()
    watchdog: Watchdog = field(default_factory=Watchdog, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files, tracks and prints."""
        return self.rank == 0


@contextlib.contextmanager
def open_world(
    device: str = "auto", timeout_seconds: float = 600.0, watchdog: Watchdog | None = None
) -> Iterator[World]:
    """Open (or adopt) the process group; close it at the end if it was opened here and the block ended well.

    After a failure the group stays open: the other ranks see no broken connection before the launcher knows the cause, and
    this rank does not wait for them, as NCCL's closing does. A process that has opened a group here ends by
    `pipeline.base.leaving.leave`, at once.

    `device`: "auto" takes the GPU of this local rank, or the CPU where this process is given no GPU; "cpu" and "cuda" insist.
    `timeout_seconds`: how long a rank waits for another before the watchdog, if there is one, ends the job; the collective
    itself fails 30 s later. Raises UserError if the environment is incomplete, torch cannot use the GPU that this process
    is given, or ranks of a group that is opened here share a GPU.
    """
    rank, size = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    local_rank, local_size = _variable("LOCAL_RANK", 0), _variable("LOCAL_WORLD_SIZE", 1)
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        device=gpus.take(device, local_rank),
        watchdog=watchdog or Watchdog(),
    )
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    else:
        _keep_freed_memory()
    if size == 1:
        yield replace(world, machine=Machine(ranks=(rank,), gpus=_known(gpus.identity(world.device))))
        return
    world.watchdog.note("meeting the other ranks")
    opened = not dist.is_initialized()
    if opened:
        skip_cleanup()
        _open_group(world, device, timedelta(seconds=timeout_seconds + COLLECTIVE_GRACE_SECONDS))
    assert dist.get_rank() == rank and dist.get_world_size() == size, "environment and group disagree"
    wait_for_all_ranks()
    yield _with_machine(world)
    if opened:
        dist.destroy_process_group()


def _open_group(world: World, wanted: str, timeout: timedelta) -> None:
    """Open the group of all ranks. Raises UserError, on every rank, where two share one GPU or only some have one."""
    options: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "timeout": timeout}
    one_machine = world.size == world.local_size
    if one_machine:
        stay_on_this_machine()
    place = MeetingPlace(world.rank, world.size, timeout, one_machine=one_machine)
    store = place.store
    world.watchdog.share(place.board())
    if wanted != "cpu":
        # Before the group: torch 2.15 makes NCCL's communicator with it, and NCCL refuses a shared GPU in words of its own.
        gpus.check_places(_places(dist.PrefixStore("places", store), world))
    # GPU worlds get gloo beside NCCL, because agreements between hosts (stop flags) must not touch the device.
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), **options)


def _places(store: dist.Store, world: World) -> list[tuple[str, str]]:
    """By rank: its GPU ("" where it has none) and its host. Every rank of the world calls this."""
    store.set(f"{world.rank}", json.dumps([gpus.identity(world.device), socket.gethostname()]))
    texts = store.multi_get([f"{rank}" for rank in range(world.size)])
    if store.add("read", 1) == world.size:
        store.set("all have read", "")
    if world.is_main:
        store.wait(["all have read"])  # this process may hold the store: the others need nothing of it any more
    places = [json.loads(text) for text in texts]
    return [(gpu, host) for gpu, host in places]


def _with_machine(world: World) -> World:
    """`world` with this rank's share of the cores of its host, what the ranks there have together, and the names of all hosts.

    A collective: every rank calls it.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")  # names the machine, also inside containers of equal host names
    name, mine = socket.gethostname(), frozenset(os.sched_getaffinity(0))
    host = boot.read_text(encoding="utf-8") if boot.exists() else name
    everyone: list[tuple[str, str, frozenset[int], str]] = [("", "", mine, "")] * world.size
    dist.all_gather_object(everyone, (host, name, mine, gpus.identity(world.device)))
    here = [(rank, mask, gpu) for rank, (place, _, mask, gpu) in enumerate(everyone) if place == host]
    ranks, masks, identities = zip(*here, strict=True)
    machine = Machine(ranks=ranks, gpus=_known(*identities), cores=cores_together(mine, masks))
    hosts = tuple(name for _, name, _, _ in everyone)
    return replace(world, cores=share_of_cores(mine, masks), machine=machine, hosts=hosts)


def _known(*identities: str) -> tuple[str, ...]:
    return tuple(filter(None, identities))


def wait_for_all_ranks() -> None:
    """Return when every rank has called this: after a process group is made and before anything can fail. A collective.

    Making a group connects every pair of its ranks, and a rank goes on as soon as its own connections stand. If that rank
    then failed and left, it would break the connections of the ranks that are still connecting: they would fail with gloo's
    "Connection closed by peer", and the message that says why would be lost.
    """
    dist.all_reduce(torch.zeros(1))  # by gloo, which every world has: nothing touches a GPU


def on_main(world: World, function: Callable[[], T]) -> T:
    """Call `function` on rank 0 alone and return its (picklable) result on every rank. A collective: every rank calls it.

    A UserError of rank 0 is raised on every rank, and where it fails otherwise, a UserError on the others that says so: all
    stop instead of waiting for the main rank.
    """
    if world.size == 1:
        return function()
    outcome: list[T | UserError | None] = [None]
    failure: Exception | None = None
    if world.is_main:
        try:
            outcome = [function()]
        except UserError as error:
            outcome = [UserError(str(error))]
        except Exception as error:
            failure = error
            outcome = [UserError(f"rank 0 failed, its log has the reason ({type(error).__name__}: {error})")]
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if failure is not None:
        raise failure
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return cast(T, outcome[0])


def sum_over_ranks(world: World, value: int) -> int:
    """Return the sum of a count over all ranks. A collective: every rank calls it."""
    if world.size == 1:
        return value
    total = torch.tensor(value, device=world.device)
    dist.all_reduce(total)
    return int(total.item())


def gather_from_ranks(values: torch.Tensor) -> list[torch.Tensor]:
    """Return the `values` (on the host, of equal shapes) of every rank, by rank. A collective: every rank calls it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [values]
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    return gathered


def set_threads(world: World, threads: int | None) -> int:
    """Give this process `threads` intra-op threads (default: its share of the host's cores), and return them.

    The count decides how the CPU's kernels split their sums, hence the last bits of a CPU run: it is recorded with the run.
    """
    threads = threads or world.cores
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # torch allows this only before the first operator (Ray's workers ran some)
        torch.set_num_interop_threads(1)  # nothing here runs two operators of one graph side by side
    return threads


def _keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next activation of that size, instead of returning it to the kernel.

    Without this, every activation took fresh pages, zeroed one by one: 16% of the CPU time of a ResNet-20 step. Only glibc
    offers this; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)  # bytes above which a block gets pages of its own
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)  # bytes that may lie free at the heap's end


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if name != "RANK" and "RANK" in os.environ and name not in os.environ and name != "LOCAL_WORLD_SIZE":
        raise UserError(f"RANK is set but {name} is not: start ranks with a launcher (launch/local.py, torchrun)")
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment variable {name} is '{text}', not a number: unset it or start ranks with a launcher"
        ) from None
