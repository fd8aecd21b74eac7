"""Names for parts of an update, which `--profile` (pipeline/loop/profiling.py) shows in its trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.profiler import record_function

Span = Literal[
    "waiting for data", "forward", "backward", "sum gradients of this rank", "sum gradients over ranks", "optimizer"
]
_OFF = nullcontext()


def span(name: Span) -> AbstractContextManager[object]:
    """A block of this name in the trace; nothing where no profiler runs, which takes less than a microsecond to find out."""
    return record_function(name) if torch.autograd._profiler_enabled() else _OFF
