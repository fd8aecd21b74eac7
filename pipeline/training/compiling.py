"""torch.compile for the training step: normalizations, ReLUs and additions fused, in segments of the net or in one graph.

`stages` compiles each of the net's segments (`ResNet.segments`) by itself. Their backward passes follow one another, so
that the gradients of the late stages travel while those of the early ones are computed. `net` compiles the net as one
graph, whose gradients are all ready at the same time, at the end of the backward pass. Either way the net is compiled in
place, inside DDP: any number of ranks runs the same kernels, so that the bits stay the same.

torch's own answer, DDPOptimizer, splits one graph where DDP's buckets end. It splits nothing where there is no DDP, so one
rank would run other kernels than two; it compiles only inside DDP, too late to go on without; and DDP's static_graph, which
we use, is a case that it does not take. Compiling block by block took twice the time of no compilation, measured on a CPU
with ResNet-20.

Evaluation and recomputed statistics are not compiled: they have many shapes and few passes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.process.world import World
from pipeline.training.precision import Precision

CompileBy = Literal["stages", "net"]
Segment = Callable[[Tensor], Tensor]

SHAPES_AT_MOST = 64  # crop sizes that one run may compile for (progressive resizing); torch's default is 8
COMPILERS_AT_MOST = 32  # compiler processes of one rank, as in torch's default: each holds torch in memory
THREADS_VARIABLE = "TORCHINDUCTOR_COMPILE_THREADS"


class _Segmented(Protocol):
    """A net that can be compiled by stages."""

    def segments(self) -> list[Segment]:
        """Functions whose composition is the net's forward pass."""


def compile_for_training(
    model: nn.Module,
    example: torch.Size,
    dtype: torch.dtype,
    precision: Precision,
    by: CompileBy,
    world: World,
    meets_others: bool,
) -> str | None:
    """Compile `model` in place if compiling works on every rank. A collective: every rank calls it.

    example: the shape [N, 3, H, W] of a micro-batch, dtype: its images'; the model is compiled for them at once, so that a
    failure shows here, and so that the first update finds its kernels. meets_others: the forward pass waits for other ranks
    (normalization groups that span ranks).
    Returns None where the model is compiled, else one sentence that says why it is not.
    """
    world.watchdog.note("compiling the net", limited=False)  # takes minutes for the deepest nets
    parts = cast(_Segmented, model).segments() if by == "stages" else [cast(Segment, model._call_impl)]
    _configure(world, len(parts))
    compiled: list[Segment] = [torch.compile(part, dynamic=False) for part in parts]
    failure = _failure(model, parts, compiled, torch.zeros(example, dtype=dtype), precision, world.device, meets_others)
    failures = [failure]
    if world.size > 1:
        failures = [None] * world.size
        dist.all_gather_object(failures, failure)
    world.watchdog.note("meeting the other ranks after compiling")  # under its limit again
    reason = next((f"rank {rank}: {found}" for rank, found in enumerate(failures) if found is not None), None)
    if reason is None:  # else every rank computes with the same kernels: the uncompiled ones
        # What `Module.compile` sets, too. Copies of the model, such as those of evaluations, are made without it.
        model._compiled_call_impl = _one_after_another(compiled)
    return reason


def _one_after_another(functions: Sequence[Segment]) -> Segment:
    def forward(images: Tensor) -> Tensor:
        for function in functions:
            images = function(images)
        return images

    return forward


def _configure(world: World, parts: int) -> None:
    """Set torch's compiler up for this rank, which compiles `parts` functions."""
    import torch._inductor.config  # not at the top: it takes longer than all else that a rank imports from torch

    if THREADS_VARIABLE not in os.environ:  # a user's choice
        torch._inductor.config.compile_threads = compiler_threads(world)
    # The segments share one piece of code, whose compiled versions torch counts together.
    settings = torch._dynamo.config
    settings.recompile_limit = SHAPES_AT_MOST * parts
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, settings.recompile_limit)
    # DDPOptimizer would split the graph at the buckets when a later crop size is compiled inside DDP.
    settings.optimize_ddp = False
    # This module warns of missing CUDA, also on machines without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def compiler_threads(world: World) -> int:
    """How many processes of this rank compile kernels at the same time.

    On a GPU a net has 100 to 200 kernels, and ptxas takes about half a second for each. On a CPU there are a few kernels,
    and a pool of compilers would import torch once per core on every rank: seconds lost.
    """
    if world.device.type == "cpu":
        return 1
    return min(COMPILERS_AT_MOST, world.cores)


def _failure(
    model: nn.Module,
    parts: Sequence[Segment],
    compiled: Sequence[Segment],
    images: Tensor,
    precision: Precision,
    device: torch.device,
    meets_others: bool,
) -> str | None:
    """Compile by one forward and backward pass without a lasting effect; returns why that failed, or None.

    meets_others: where a part cannot be compiled, this rank still goes through it and those that follow, uncompiled, because
    the other ranks wait in their forward and backward passes for its statistics.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    failure: str | None = None
    x = images.to(device).to(memory_format=torch.channels_last)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), _whole(meets_others):
            for part, function in zip(parts, compiled, strict=True):
                if failure is None:
                    try:
                        x = function(x)
                        continue
                    except Exception as error:
                        failure = _words(error)
                        if not meets_others:
                            return failure
                x = part(x)
        x.float().sum().backward()
    except Exception as error:  # no C++ compiler, an unsupported GPU, a defect of torch: training goes on uncompiled
        failure = failure or _words(error)
    finally:
        model.zero_grad(set_to_none=True)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return failure


def _whole(meets_others: bool) -> contextlib.AbstractContextManager[object]:
    """Have a part's backward pass compiled before its forward pass runs, where other ranks take part in either.

    torch compiles a backward pass at its first use. A rank that failed there would have met the others in the forward pass
    and could neither finish nor begin again.
    """
    if not meets_others:
        return contextlib.nullcontext()
    import torch._functorch.config

    return torch._functorch.config.patch(force_non_lazy_backward_lowering=True)


def _words(error: Exception) -> str:
    message = str(error).split("Set TORCHDYNAMO_VERBOSE")[0]  # advice to torch's developers follows
    return f"{type(error).__name__}: {' '.join(message.split())[:300]}"
