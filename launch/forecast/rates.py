"""Measurements of devices, for the plan: images/s of a net, and how fast ranks of one host sum gradients.

`bench/step.py` and `bench/scaling.py` write the file, on the machine that will train. `launch/forecast/plan.py` reads it,
usually on a login node; so the file stands beside the site's, on storage that all of them share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from pipeline.base.checkout import CONFIGS
from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.base.files import read_yaml, write_text
from pipeline.base.typed import read_typed
from pipeline.process.device import model_name

RATES_FILE = CONFIGS / "rates.yaml"
HEADER = "# Measured by bench/step.py and bench/scaling.py, read by the plan of launch/slurm.py --dry-run.\n"

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Speed of whole updates of one rank, on synthetic images, without a reduction between ranks.

    device: its name as the driver gives it. threads: of the rank, 0 on a GPU. processes: ranks at work on the host at
    once, this one included; each of them makes images_per_second. crop: pixels. micro_batch: images of a forward pass.
    """

    kind: Kind
    device: str
    arch: str
    stride: str
    precision: str
    compile: bool
    crop: int
    micro_batch: int
    threads: int
    processes: int
    images_per_second: float
    measured: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """How fast `ranks` ranks of one host sum gradients: seconds = 2 (N-1)/N bytes / bytes_per_second + latency_seconds."""

    kind: Kind
    device: str
    reduction: Literal["tree", "allreduce"]
    ranks: int
    bytes_per_second: float
    latency_seconds: float
    measured: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    rates: tuple[Rate, ...] = ()
    links: tuple[Link, ...] = ()


FIGURES = frozenset(("images_per_second", "bytes_per_second", "latency_seconds", "measured", "torch"))


def read(path: Path = RATES_FILE) -> Rates:
    """The measurements stored in `path`, none where it does not exist. Raises UserError for a file that does not fit."""
    if not path.exists():
        return Rates()
    what = "file of measured rates"
    try:
        return read_typed(Rates, read_yaml(path, what) or {}, f"the {what} {path}")
    except UserError as error:
        raise UserError(f"{error}; or remove the file and measure again with bench/step.py") from None


def store(entries: Sequence[Rate | Link], path: Path = RATES_FILE) -> None:
    """Add measurements to `path`. Each replaces an older one of the same thing."""
    old = read(path)
    fresh = {_what(entry) for entry in entries}
    before: list[Rate | Link] = [*old.rates, *old.links]
    everything = sorted([*(entry for entry in before if _what(entry) not in fresh), *entries], key=repr)
    plain = {
        "rates": [dataclasses.asdict(entry) for entry in everything if isinstance(entry, Rate)],
        "links": [dataclasses.asdict(entry) for entry in everything if isinstance(entry, Link)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, HEADER + yaml.safe_dump(plain, sort_keys=False))


def stamp() -> dict[str, str]:
    """What says when and with what something was measured: today's date, and torch's version."""
    return {"measured": date.today().isoformat(), "torch": str(torch.__version__)}


def device_name(device: torch.device) -> str:
    """The name a measurement is stored under: the GPU's, or the CPU's with the cores this process has."""
    cores = "" if device.type == "cuda" else f", {available_cores()} cores"
    return model_name(device) + cores


def matching(rates: Rates, kind: Kind, device: str | None) -> Rates:
    """The measurements of one device: the one whose name contains `device`, or the only one of its kind.

    None of any device where several fit.
    """

    def fits(entry: Rate | Link) -> bool:
        return entry.kind == kind and (device is None or device.lower() in entry.device.lower())

    found = Rates(rates=tuple(filter(fits, rates.rates)), links=tuple(filter(fits, rates.links)))
    names = {rate.device for rate in found.rates} | {link.device for link in found.links}
    return found if len(names) == 1 else Rates()


def find_rate(
    rates: Rates, *, arch: str, precision: str, compile: bool, crop: int, micro_batch: int, threads: int, processes: int
) -> Rate | None:
    """Among the rates of one device (`matching`) the one that was measured closest to what is asked for.

    Precision, crop and a CPU rank's threads must be the same. Where this net was not measured, another net's rate is given.
    """

    def fits(rate: Rate) -> bool:
        return (rate.precision, rate.crop) == (precision, crop) and rate.threads in (0, threads)

    def distance(rate: Rate) -> tuple[float, ...]:
        ratios = _ratio(rate.processes, processes), _ratio(rate.micro_batch, micro_batch)
        return rate.arch != arch, rate.compile != compile, *ratios

    return min(filter(fits, rates.rates), key=distance, default=None)


def find_link(rates: Rates, *, reduction: str, ranks: int) -> Link | None:
    """How fast ranks of one host sum gradients: measured with `ranks` ranks, or with the nearest number."""
    links = [link for link in rates.links if link.reduction == reduction]
    return min(links, key=lambda link: _ratio(link.ranks, ranks), default=None)


def _ratio(one: int, other: int) -> float:
    return max(one, other) / min(one, other)


def _what(entry: Rate | Link) -> tuple[Any, ...]:
    """What an entry measures: all of it but its figures."""
    values = dataclasses.asdict(entry)
    return (type(entry).__name__, *(value for name, value in values.items() if name not in FIGURES))
