"""Bounds of the numbers that users give."""

from __future__ import annotations

from pipeline.base.command import UserError


def check_at_least(least: int, section: object, *names: str, prefix: str = "") -> None:
    """Raise UserError where one of these attributes of a config section is below `least`; None is not compared.

    prefix: the section's name and a dot, as users type the key.
    """
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} is {value}: it must be at least {least}")
