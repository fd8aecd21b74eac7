"""The first line of a preparation. Imports light modules alone."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.starting import targets


def preparing_line(words: Sequence[str]) -> str:
    """What is made of what, as far as the command line's words tell."""
    match targets(words):
        case [source, destination, *_]:
            return f"preparing {destination} from {source}"
        case [source]:
            return f"preparing a dataset from {source}"
    return "preparing a dataset"
