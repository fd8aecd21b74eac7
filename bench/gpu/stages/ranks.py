"""Two ranks on one GPU against one, bit for bit; and NCCL with a group of one.

NCCL refuses two ranks on one device. So gloo carries tensors of the GPU here, and the tree goes through the host: what is
checked is the ranks' streams, hooks, groups and recordings, not NCCL's collectives between devices.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bench.gpu.check import Check, ending
from bench.gpu.runs import device_name
from launch.local import rank_environment, reserve_port
from pipeline.base import leaving
from pipeline.models.resnet import build
from pipeline.process import gpus
from pipeline.process.world import World, open_world
from pipeline.training import reduction
from pipeline.training.batchnorm import plan_groups
from pipeline.training.reduction import GradientReducer
from pipeline.training.replay import cuda_graphs
from pipeline.training.step import StepConfig, TrainingStep

BATCH, GROUP, SIDE, UPDATES = 32, 8, 32, 6
# By name: values of StepConfig, the images of a normalization group, and whether the update is recorded.
MODES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "tree": ({"reduction": "tree"}, GROUP, False),
    "allreduce": ({"reduction": "allreduce"}, GROUP, False),
    "normalization across ranks": ({"reduction": "allreduce"}, BATCH, False),
    "tree, compiled": ({"reduction": "tree", "compile_crop": SIDE}, GROUP, False),
    "tree, CUDA graph": ({"reduction": "tree"}, GROUP, True),
}
ON_CPUS = ("tree", "allreduce")


def run(check: Check) -> None:
    modes = {name: partial(compare_worlds, mode=name) for name in MODES}
    if check.gpu:
        check.apart(modes, 50)  # at once: bits do not depend on what else runs
    else:
        for name in ON_CPUS:
            check.apart({name: modes[name]}, 50)
    check.apart({"NCCL with a group of one": nccl_alone}, 40, gpu=True)


def compare_worlds(check: Check, *, mode: str) -> None:
    """Make the same updates on one rank and on two; note whether the weights have equal bits."""
    with tempfile.TemporaryDirectory(dir=check.work) as name:
        one, two = (trained(size, mode, Path(name), check.left) for size in (1, 2))
    equal = torch.equal(one["weights"], two["weights"])
    broken = mode.startswith("tree") and not equal
    check.note(
        "2 ranks on one device against 1",
        mode=mode,
        equal_bits=equal,
        largest=float((one["weights"] - two["weights"]).abs().max()),
        not_compiled=two["not_compiled"],
        **({"failed": "bits differ"} if broken else {}),
    )


def trained(size: int, mode: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Make some updates on `size` ranks, processes of their own; return what rank 0 saved."""
    context, file = multiprocessing.get_context("spawn"), folder / f"{size}.pt"
    with reserve_port() as port:
        ranks = [context.Process(target=rank_main, args=(rank, size, port, mode, file)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        try:
            for rank in ranks:
                rank.join(max(1.0, seconds))
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
    if codes := [ending(code) for rank in ranks if (code := rank.exitcode or 0)]:
        raise RuntimeError(f"of {size} ranks, some ended with {', '.join(codes)}")
    return cast(dict[str, Any], torch.load(file))


def rank_main(rank: int, size: int, port: int, mode: str, file: Path) -> None:
    # All ranks are the local rank 0, and so share a device.
    os.environ.update({**rank_environment(rank, size, port), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    torch.set_num_threads(1)  # the number of threads decides the last bits of a CPU's sums
    torch.backends.cudnn.deterministic = True
    if torch.cuda.is_available() and size > 1:
        share_the_gpu()
    config, group, graph = MODES[mode]
    with open_world(device_name(), 60) as world:
        net = build("resnet8", classes=10, generator=torch.Generator().manual_seed(0))
        asked = StepConfig(batch=BATCH, precision="bf16", **config)
        step = TrainingStep(net, asked, plan_groups(BATCH, group, rank, size), world, cuda_graphs(graph, world))
        generator = torch.Generator().manual_seed(1)
        for _ in range(UPDATES):
            images = torch.randn(BATCH, SIDE, SIDE, 3, generator=generator)
            labels = torch.randint(10, (BATCH,), generator=generator)
            rows = step.plan.rows
            step.step(images[rows].to(world.device), labels[rows].to(world.device), 0.1)
        step.take_metrics()
        step.statistics.gather_into_model(UPDATES)
        if rank == 0:
            weights = [value.detach().float().flatten().cpu() for value in step.model.state_dict().values()]
            torch.save({"weights": torch.cat(weights), "not_compiled": step.not_compiled}, file)
        step.close()
    leaving.skip_cleanup()  # in which a rank on a crowded machine once aborted: "terminate called without an active exception"
    leaving.leave(0)


def share_the_gpu() -> None:
    """Let ranks share the GPU: gloo carries its tensors, and the tree's sums go through the host."""
    init = dist.init_process_group

    def with_gloo(backend: str, **more: Any) -> None:
        init("cpu:gloo,cuda:gloo", **more)

    def through_the_host(buffer: Tensor, groups: object) -> None:
        host = buffer.cpu()
        reduction.tree_all_reduce(host, None)
        buffer.copy_(host)

    gpus.check_places = lambda places: None  # they share it on purpose
    dist.init_process_group = with_gloo  # type: ignore[assignment]
    reduction.tree_all_reduce_nccl = through_the_host  # type: ignore[assignment]


def nccl_alone(check: Check) -> None:
    """Try what several GPUs need of NCCL, with one: a gloo group beside it, DDP's hook, functional collectives."""
    with reserve_port() as port:
        os.environ.update(rank_environment(0, 1, port))
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
        dist.all_reduce(torch.ones(1), group=cast(dist.ProcessGroup, dist.new_group(backend="gloo")))
        modes: tuple[tuple[Literal["tree", "allreduce"], Literal["none", "bf16"]], ...] = (
            ("tree", "none"),
            ("allreduce", "none"),
            ("allreduce", "bf16"),
        )
        for mode, compression in modes:
            check.part(f"DDP's hook, {mode}, {compression}", partial(hook, check, device, mode, compression))
        functional, group = torch.ops._c10d_functional, dist.group.WORLD
        assert group is not None
        value = torch.arange(8.0, device=device)
        gathered = functional.wait_tensor(functional.all_gather_into_tensor(value, 1, group.group_name))
        reduced = functional.wait_tensor(functional.all_reduce(value, "sum", group.group_name))
        equal = torch.equal(gathered, value) and torch.equal(reduced, value)
        check.note("functional collectives under NCCL", equal_bits=equal)
        dist.destroy_process_group()


def hook(
    check: Check, device: torch.device, mode: Literal["tree", "allreduce"], compression: Literal["none", "bf16"]
) -> None:
    """Compare the gradients that DDP leaves with those of the bare net."""
    net = build("resnet8", classes=10, generator=torch.Generator().manual_seed(0)).to(device)
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).to(device)
    images = images.to(memory_format=torch.channels_last)
    net(images).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad(set_to_none=True)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    reducer = GradientReducer(net.parameters(), mode, world, compression)
    reducer.groups = [cast(dist.ProcessGroup, dist.new_group())]  # a world of one rank has none of its own
    wrapped = DistributedDataParallel(net, device_ids=[0], gradient_as_bucket_view=True, static_graph=True)
    wrapped.register_comm_hook(None, reducer.hook)
    for _ in range(3):
        wrapped.zero_grad(set_to_none=True)
        wrapped(images).square().sum().backward()
    found = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    worst = max(
        float((one - two).abs().max() / two.abs().max().clamp(min=1e-20))
        for one, two in zip(found, expected, strict=True)
    )
    check.note("DDP's hook under NCCL", mode=mode, compression=compression, worst_relative=worst)
    reducer.close()
