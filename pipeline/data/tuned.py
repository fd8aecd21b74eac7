"""What `python -m pipeline.tune` found for machines: a file beside the measured rates, from which loaders take their queues.

A finding holds for one kind of device and one number of cores: those of a rank, since the ranks of a machine share its cores.
The file stands beside the site's, on storage that all machines share; without one, built-in values hold.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import yaml

from pipeline.base.checkout import CONFIGS
from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.base.files import read_yaml, write_text
from pipeline.base.typed import read_typed
from pipeline.data.batch import LoaderConfig, Queues
from pipeline.data.decoders import Rung
from pipeline.process.device import model_name
from pipeline.process.world import World

FILE = CONFIGS / "loader.yaml"
HEADER = "# Found by pipeline/tune.py: a loader takes the values of its device and cores where its config has null.\n"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of device, by its name, and the cores that a rank has beside it."""

    device: str
    cores: int

    @staticmethod
    def of(device: torch.device, local_size: int) -> Machine:
        """This machine, for each of `local_size` ranks."""
        return Machine(device=model_name(device), cores=max(1, available_cores() // local_size))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was found for a machine: how to decode, the queues; images/s of one rank with them, and with built-in values."""

    machine: Machine
    decode_on: Rung
    queues: Queues
    images_per_second: float
    untuned_images_per_second: float
    measured: str


@dataclass(frozen=True, kw_only=True)
class _Stored:
    tuned: tuple[Tuned, ...] = ()


def read(path: Path | None = None) -> tuple[Tuned, ...]:
    """What is stored in `path` (default: FILE), nothing where it does not exist. Raises UserError for a damaged file."""
    path, what = path or FILE, "file of tuned loader settings"
    if not path.exists():
        return ()
    try:
        return read_typed(_Stored, read_yaml(path, what) or {}, f"the {what} {path}").tuned
    except UserError as error:
        raise UserError(f"{error}; or remove the file and tune again with python -m pipeline.tune") from None


def store(found: Tuned, path: Path | None = None) -> Path:
    """Add a finding to `path` (default: FILE), in place of an older one for the same machine; the file."""
    path = path or FILE
    others = [one for one in read(path) if one.machine != found.machine]
    everything = sorted([*others, found], key=lambda one: (one.machine.device, one.machine.cores))
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"tuned": [dataclasses.asdict(one) for one in everything]}
    write_text(path, HEADER + yaml.safe_dump(plain, sort_keys=False))
    return path


def find(machine: Machine, path: Path | None = None) -> Tuned | None:
    """What was found for exactly this machine. Raises UserError for a damaged file."""
    return next((one for one in read(path) if one.machine == machine), None)


def today() -> str:
    return date.today().isoformat()


def with_queues(config: LoaderConfig, world: World) -> LoaderConfig:
    """`config` with a value for each of its queues: as given, else as tuned for this machine, else the built-in one.

    The ranks of a host share its cores. The main rank says if it takes what was tuned. Raises UserError for a damaged file.
    """
    machine, stored = Machine(device=model_name(world.device), cores=world.cores), read()
    found = next((one for one in stored if one.machine == machine), None)
    values = dataclasses.asdict(found.queues if found else Queues(threads=machine.cores))
    given = {key: value for key in values if (value := getattr(config, key)) is not None}
    if found and world.is_main and (taken := {key: value for key, value in values.items() if key not in given}):
        words = ", ".join(f"{key} {value}" for key, value in taken.items())
        print(f"loader: {words}, as tuned for this machine on {found.measured}", file=sys.stderr)
    others = [one.machine.cores for one in stored if one.machine.device == machine.device]
    if not found and others and world.is_main:
        cores = ", ".join(map(str, others))
        words = f"{machine.device} was tuned with {cores} cores, and this rank has {machine.cores}"
        print(f"loader: built-in values, since {words}", file=sys.stderr)
    return dataclasses.replace(config, **(values | given))
