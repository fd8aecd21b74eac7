"""What DALI raises, and what its errors say. Imports no torch."""

from __future__ import annotations

import re

DALI_ERRORS = (RuntimeError, MemoryError)  # it has the second where memory is exhausted in a build
# In the words of DALI 2.4, CUDA, nvImageCodec 0.9 with nvJPEG, and the C++ library.
_MEMORY = re.compile(
    r"out of memory|bad_alloc|(can't|cannot|failed to) allocate|alloca(tion|tor)[ _]fail", re.IGNORECASE
)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error of DALI says that memory, of the host or of a GPU, was exhausted."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def reason_of(error: BaseException) -> str:
    """Return the informative lines of a DALI error, without the operator's place in DALI's graph and C++ sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    start = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    kept = [line for line in lines[start:] if line and not line.startswith(("C++ context", "Current pipeline"))]
    return " ".join(kept)[:300] or "no reason given"
