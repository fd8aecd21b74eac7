"""The site's file, configs/site.yaml: what holds for all runs on a cluster. Every launcher reads it here.

A key is either a value of the nodes that a SLURM job asks for (`launch/on_slurm/allocation.py:Allocation`), or says what
energy and GPUs cost (`pipeline/meter/costs.py:Costs`). What a user gives, on the command line or in a config, stands above it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.on_slurm.allocation import Allocation
from pipeline.base.checkout import CONFIGS, configs
from pipeline.base.command import UserError
from pipeline.base.files import read_yaml
from pipeline.meter.costs import Costs

if TYPE_CHECKING:  # imports torch
    from pipeline.run.config import Config

SITE_FILE = CONFIGS / "site.yaml"


@dataclass(frozen=True, kw_only=True)
class Site(Allocation, Costs):
    """Every key that a site file may have."""

    def __post_init__(self) -> None:
        Allocation.__post_init__(self)
        Costs.__post_init__(self)


def add_site_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--site", type=str, help=f"YAML file of the site's defaults (default: configs/{SITE_FILE.name})"
    )


def site_values(path: str | None) -> dict[str, Any]:
    """The values of the site file at `path`; where None, those of configs/site.yaml if there is one. Raises UserError."""
    file = Path(path) if path else configs() / SITE_FILE.name
    return read_site(file) if path or file.exists() else {}


def read_site(path: Path) -> dict[str, Any]:
    """The values that a site file sets; null sets nothing. Raises UserError for keys and values that do not fit."""
    from pipeline.base.typed import read_typed  # here, as docstring_parser in launch/on_slurm/allocation.py

    values = read_yaml(path, "site file", "give an existing file to --site") or {}
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if value is not None}
    try:
        site = read_typed(Site, values, f"the site file {path}")
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"in the site file {path}: {error}") from None
    return {key: getattr(site, key) for key in values}


def with_costs(config: Config, site: Mapping[str, Any]) -> Config:
    """The config, with the site's costs where the config has none."""
    costs = config.tracking.costs
    names = [key.name for key in dataclasses.fields(costs)]
    known = {name: site[name] for name in names if name in site and getattr(costs, name) is None}
    return replace(config, tracking=replace(config.tracking, costs=replace(costs, **known))) if known else config
