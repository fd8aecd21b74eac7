"""torch.compile for the training step: the net as one graph, its normalizations, ReLUs and additions fused.

The whole net is compiled in place, inside DDP: every world size runs the same kernels, so that the bits stay the same.
(Compiling around DDP would cut the graph at its buckets, which hides more of the all-reduce and changes the fusions;
compiling block by block was measured on a CPU, ResNet-20: twice the time of no compilation.)
Evaluation and recomputed statistics are not compiled: their shapes are many and their passes few.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from pipeline.process.world import World

SHAPES_AT_MOST = 64  # crop sizes that one run may compile for (progressive resizing); torch's own limit is 8


def compile_for_training(
    model: nn.Module,
    example: torch.Size,
    precision: Literal["float32", "bf16"],
    world: World,
    meets_others: bool = False,
) -> str | None:
    """Compile `model` in place where that works on every rank; else leave it as it was and say why. A collective.

    example: the shape [N, 3, H, W] of a micro-batch, which is compiled at once, so that a failure is seen here.
    meets_others: the net itself waits for other ranks (normalization groups that span them).
    Returns None where the model is compiled, else the reason in one sentence.
    """
    world.watchdog.note("compiling the net", limited=False)  # minutes for the deepest
    # Inductor's pool of compiler processes would import torch once per core on every rank: seconds lost for a few kernels.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.config.recompile_limit = SHAPES_AT_MOST
    # It would cut the graph of a later crop size, which is met inside DDP, at the buckets.
    torch._dynamo.config.optimize_ddp = False
    # It looks for CUDA and warns of its absence, on machines that never had any.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    mine = _failure(model, example, precision, world.device)
    if mine is not None and meets_others:
        with eager():  # the others wait inside their nets for this one's statistics
            _failure(model, example, precision, world.device)
    reason = _agreed(mine, world)
    if reason is not None:
        model._compiled_call_impl = None  # every rank computes with the same kernels
    return reason


def _agreed(mine: str | None, world: World) -> str | None:
    """The first rank's reason why it failed, on every rank; None where none did. A collective."""
    reasons = [mine]
    if world.size > 1:
        reasons = [None] * world.size
        dist.all_gather_object(reasons, mine)
    return next((f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None), None)


@contextmanager
def eager() -> Iterator[None]:
    """Inside, compiled nets compute as if they were not."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _failure(
    model: nn.Module, shape: torch.Size, precision: Literal["float32", "bf16"], device: torch.device
) -> str | None:
    """Compile `model`, by one forward and backward pass that leaves no trace in it; why that failed, or None."""
    model.compile(dynamic=False)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = model(images)
        scores.float().sum().backward()
    except (
        Exception
    ) as error:  # a missing C++ compiler, an unsupported GPU, a defect of torch: training goes on without
        told = str(error).split("Set TORCHDYNAMO_VERBOSE")[0]  # advice to torch's developers follows
        return f"{type(error).__name__}: {' '.join(told.split())[:300]}"
    finally:
        model.zero_grad(set_to_none=True)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return None
