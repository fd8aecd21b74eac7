"""Errors that others published of the same nets, as experiment files give them: shown beside the paper's and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedErrors:
    """The errors of one row's net under one protocol, in percent; None where they were not published."""

    row: str
    protocol: str
    top1_error: float | None = None
    top5_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """One source of such errors. name: the head of its column. source: where they stand, and what a reader must know."""

    name: str
    source: str
    errors: tuple[PublishedErrors, ...]


def beside(published: Sequence[Published], row: str, protocol: str | None, figure: str) -> dict[str, float]:
    """By source, the published values of a figure (top1_error, top5_error) of a row under a protocol."""
    return {
        one.name: value
        for one in published
        for errors in one.errors
        if (errors.row, errors.protocol) == (row, protocol) and (value := getattr(errors, figure, None)) is not None
    }


def centre_crop(published: Sequence[Published], row: str) -> Mapping[str, None]:
    """The figures that some source gives of a row's centre crop, in the order of a table."""
    return {name: None for name in ("top1_error", "top5_error") if beside(published, row, "center", name)}
