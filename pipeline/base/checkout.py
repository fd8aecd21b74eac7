"""The checkout that this application runs from: a wheel holds its packages, but not the configs/ beside them."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.command import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPE = "imagenet.yaml"  # in configs/: what a command trains whose user names no config
DATA = "data/imagenet"  # the dataset folder that the recipe names


def configs() -> Path:
    """The folder configs/. Raises UserError where it is missing: the packages were installed from a wheel."""
    if not CONFIGS.is_dir():
        raise UserError(
            f"there is no {CONFIGS}: this is an application that runs from a checkout of its repository, so start the same "
            "command there (README.md, 'Two commands')"
        )
    return CONFIGS
