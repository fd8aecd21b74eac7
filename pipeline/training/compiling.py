"""torch.compile for the training step: the net becomes one graph with fused normalizations, ReLUs and additions.

The whole net is compiled in place, inside DDP: any number of ranks runs the same kernels, so that the bits stay the same.
(Compiling around DDP would split the graph at DDP's buckets, which hides more of the all-reduce and changes the fusions;
compiling block by block took twice the time of no compilation, measured on a CPU with ResNet-20.)
Evaluation and recomputed statistics are not compiled: they have many shapes and few passes.
"""

from __future__ import annotations

import logging
import os
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from pipeline.process.world import World

SHAPES_AT_MOST = 64  # crop sizes that one run may compile for (progressive resizing); torch's default is 8


def compile_for_training(
    model: nn.Module, example: torch.Size, precision: Literal["float32", "bf16"], world: World, meets_others: bool
) -> str | None:
    """Compile `model` in place if compiling works on every rank. A collective: every rank calls it.

    example: the shape [N, 3, H, W] of a micro-batch; the model is compiled for it at once, so that a failure shows here.
    meets_others: the forward pass waits for other ranks (normalization groups that span ranks).
    Returns None where the model is compiled, else one sentence that says why it is not.
    """
    world.watchdog.note("compiling the net", limited=False)  # takes minutes for the deepest nets
    # Inductor's pool of compiler processes would import torch once per core on every rank: seconds lost for a few kernels.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.config.recompile_limit = SHAPES_AT_MOST
    # DDPOptimizer would split the graph at the buckets when a later crop size is compiled inside DDP.
    torch._dynamo.config.optimize_ddp = False
    # This module warns of missing CUDA, also on machines without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    failure = _failure(model, example, precision, world.device)
    if failure is not None and meets_others:
        # The other ranks wait in their forward passes for this rank's statistics.
        with torch.compiler.set_stance("force_eager"):
            _failure(model, example, precision, world.device)
    failures = [failure]
    if world.size > 1:
        failures = [None] * world.size
        dist.all_gather_object(failures, failure)
    reason = next((f"rank {rank}: {found}" for rank, found in enumerate(failures) if found is not None), None)
    if reason is not None:
        model._compiled_call_impl = None  # every rank computes with the same kernels
    return reason


def _failure(
    model: nn.Module, shape: torch.Size, precision: Literal["float32", "bf16"], device: torch.device
) -> str | None:
    """Compile `model` by one forward and backward pass without a lasting effect; returns why that failed, or None."""
    model.compile(dynamic=False)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            scores = model(images)
        scores.float().sum().backward()
    except Exception as error:  # no C++ compiler, an unsupported GPU, a defect of torch: training goes on uncompiled
        message = str(error).split("Set TORCHDYNAMO_VERBOSE")[0]  # advice to torch's developers follows
        return f"{type(error).__name__}: {' '.join(message.split())[:300]}"
    finally:
        model.zero_grad(set_to_none=True)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return None
