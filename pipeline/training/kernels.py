"""How CUDA's kernels are chosen: the same ones in every attempt (`deterministic`), or the fastest ones (`cudnn_benchmark`).

Which operations of our nets add in an order that changes from one execution to the next, and what `deterministic` does
about it. Max pooling's kernels were read in torch's sources; the rest is what torch's list of nondeterministic operations
and NVIDIA's documents say. No GPU has shown any of it yet:

- convolutions: cuDNN may choose weight gradients that add by atomicAdd; `cudnn.deterministic` excludes them.
- matrix products (fc): cuBLAS may split sums among streams; CUBLAS_WORKSPACE_CONFIG fixes its workspace.
- compiled reductions: Inductor times several ways to split a sum and takes the fastest; `deterministic` has it take one
  without a clock.
- max pooling: none. Both of torch's backward kernels (NCHW and channels_last) have one thread for each input pixel, which
  adds the gradients of the outputs over it in a fixed order, and so does Inductor's.
- average pooling to 1 x 1 is a mean, zero-padded shortcuts are slices, the loss over [N, classes] writes each element once
  and sums in one block: none adds by atomicAdd. (torch's list of such operations names adaptive pooling and NLLLoss for
  other output sizes, and for images of labels.)
- batch normalization: partial sums are added by the last block in a fixed order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def chosen_kernels(device: str, *, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Inside the block the process's switches are set; behind it they are as before: several runs may share a process.

    Enter it before the first CUDA operation, because cuBLAS reads its variable once. device: a config's. Where that means a
    CPU nothing is set: its kernels give the same bits as they are.
    """
    with ExitStack() as undo:
        on_gpu = device != "cpu" and torch.cuda.is_available()  # which does not open the device
        if on_gpu and benchmark:
            undo.enter_context(_cudnn(benchmark=True))
        if on_gpu and deterministic:
            undo.enter_context(_cudnn(deterministic=True))
            undo.enter_context(_workspace())
            undo.enter_context(_torch_and_inductor())
        yield


@contextmanager
def _cudnn(**switches: bool) -> Iterator[None]:
    before = {name: getattr(torch.backends.cudnn, name) for name in switches}
    for name, value in switches.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def _workspace() -> Iterator[None]:
    """cuBLAS with eight buffers of 4 MiB, one of the two settings that NVIDIA documents as deterministic."""
    given = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    try:
        yield
    finally:
        if given is None:
            del os.environ[WORKSPACE]


@contextmanager
def _torch_and_inductor() -> Iterator[None]:
    import torch._inductor.config  # not at the top: it takes seconds

    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with properties
    filled = memory.fill_uninitialized_memory
    # warn_only: torch refuses whole operations for some of their shapes; a warning in the log names any that we overlooked.
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # we read nothing that was not written
    try:
        with torch._inductor.config.patch(deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        memory.fill_uninitialized_memory = filled
