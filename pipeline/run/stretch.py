"""Stretches a schedule: `--scale-batch` (the same images in fewer updates), `--epochs` (another length), and the paper's
`--scale` (a short rehearsal).

Every config field that counts something says so in its metadata, and this module needs no list of them:

    unit      "iterations": updates of this mini-batch; fewer of them see the same images where it is larger.
              "updates": updates, whatever their mini-batch. "images": training images.
    period    the field says how often something happens, not when or for how long.
    rounded   a period that may be rounded, because it leaves what the run computes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeVar

Unit = Literal["iterations", "updates", "images"]
Section = TypeVar("Section", bound=Any)  # a Config or a section of one


@dataclass(frozen=True, kw_only=True)
class Count:
    """A value that counts something. key: dotted, as `schedule.steps[0]`; the rest: see the module."""

    key: str
    value: int
    unit: Unit
    period: bool = False
    rounded: bool = False


def counts(config: Section) -> list[Count]:
    """Everything that a config counts, in the order of its fields; what is null is left out."""
    found: list[Count] = []

    def note(count: Count) -> int:
        found.append(count)
        return count.value

    _with_counts(config, {}, "", note)
    return found


def stretch(
    config: Section, share: Fraction | float, *units: Unit, shortest_period: int = 1, kept: Collection[str] = ()
) -> Section:
    """`config` with what it counts in `units` multiplied by `share`, as `stretched` rounds; 0 stays 0.

    shortest_period: a period above it does not fall below it, and a shorter period stays as it is. kept: the dotted keys
    of what stays as it is.
    """

    def change(count: Count) -> int:
        if count.unit not in units or not count.value or belongs(count.key, kept):
            return count.value
        least = min(count.value, shortest_period) if count.period else 1
        return max(least, stretched(count.value, share))

    return _with_counts(config, {}, "", change)


def belongs(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key is one of `keys` or lies inside one: `schedule.steps[0]` belongs to `schedule.steps`."""
    return any(key == one or key.startswith((f"{one}.", f"{one}[")) for one in keys)


def stretched(value: int, share: Fraction | float) -> int:
    """`value` times `share` as a whole number of at least 1."""
    return max(1, round(value * share))


def _with_counts(value: Any, metadata: Mapping[str, Any], key: str, change: Callable[[Count], int]) -> Any:
    """`value` with every count in it replaced by `change(count)`. metadata, key: of the field that holds `value`."""
    if isinstance(value, tuple):
        return tuple(_with_counts(item, metadata, f"{key}[{number}]", change) for number, item in enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        prefix = f"{key}." if key else ""
        parts = {
            part.name: _with_counts(getattr(value, part.name), part.metadata, prefix + part.name, change)
            for part in fields(value)
        }
        return replace(value, **parts)
    if "unit" not in metadata or value is None:
        return value
    return change(Count(key=key, value=value, **metadata))
