"""What is asked of the scheduler: options with SLURM's own words, the site's defaults, and how submitit is told."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.checkout import CONFIGS, configs
from pipeline.base.command import UserError, nearest
from pipeline.base.files import read_yaml

SITE_FILE = CONFIGS / "site.yaml"

# These become part of a shell script that runs on the nodes; submitit's quoting lets a newline through.
_PLAIN = re.compile(r"[A-Za-z0-9._,:=&|()*\[\]/@+-]+")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The nodes a job asks for. The defaults are a node of 8 GPUs, as most clusters for training have.

    Args:
        nodes: number of nodes.
        gpus_per_node: GPUs of each node; one task (rank) per GPU. 0: CPU nodes.
        tasks_per_node: ranks on each node; one per GPU where null, or 1 without GPUs.
        cpus_per_gpu: cores for each rank: DALI's decoding threads need them.
        mem_gb: memory of each node in GB; the site's default where null.
        partition: SLURM partition; the site's default where null.
        account: account to charge.
        qos: quality of service.
        constraint: features the nodes must have.
        time: time limit of one attempt: minutes, H:MM:SS, or D-HH:MM:SS. A longer training requeues itself.
        signal_delay: seconds before the time limit (or preemption) at which the job is told to save.
        requeue_limit: crashes in a row, without a newer checkpoint between them, after which the job is requeued. Preemption,
            time limit and lost nodes do not count.
        assume_shared: submit although the run folder or the dataset lies on a file system of this host alone: the nodes
            see it too, or hold the same files in the same place. Each job looks for them when it starts.
        network_gbits: bandwidth between nodes in Gb/s, for the plan of `--dry-run`.
        device_name: part of the name of the nodes' GPU (H100), or of their CPU, for the plan: whose measured rates it takes;
            needed where rates of several are stored.
        rates: file of the rates that bench/step.py and bench/scaling.py measured; configs/rates.yaml where null.
        images_per_second: of this net on one device, for the plan, instead of a stored rate.
        setup: shell lines that run on the first node before the ranks start (module load ..., export ...).
    """

    nodes: int = 1
    gpus_per_node: int = 8
    tasks_per_node: int | None = None
    cpus_per_gpu: int = 8
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "1-00:00:00"
    signal_delay: int = 120
    requeue_limit: int = 3
    assume_shared: bool = False
    network_gbits: float = 100.0
    device_name: str | None = None
    rates: str | None = None
    images_per_second: float | None = None
    setup: tuple[str, ...] = ()

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit, rounded up to SLURM's unit."""
        return minutes(self.time)

    def check(self) -> None:
        """Raise UserError for values that cannot be, whatever the cluster."""
        for name in ("nodes", "cpus_per_gpu"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        for name in ("gpus_per_node", "signal_delay", "requeue_limit"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it cannot be negative")
        if self.tasks_per_node is not None and self.tasks_per_node < 1:
            raise UserError(f"--tasks-per-node is {self.tasks_per_node}: it must be at least 1")
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _PLAIN.fullmatch(value):
                raise UserError(
                    f"--{name} {value!r} holds characters that have no place there: give the name that sinfo shows"
                )
        if self.minutes * 60 <= self.signal_delay:
            raise UserError(
                f"the time limit {self.time} is over before the {self.signal_delay} s that --signal-delay reserves for saving: "
                "give a longer --time"
            )

    def sbatch_parameters(self, name: str) -> dict[str, Any]:
        """SlurmExecutor's parameters, in its own words, without `setup`."""
        asked: dict[str, Any] = {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": self.ranks_per_node,
            "cpus_per_task": self.cpus_per_gpu,
            "gpus_per_node": self.gpus_per_node or None,
            "mem": f"{self.mem_gb:g}GB" if self.mem_gb else None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "signal_delay_s": self.signal_delay,
            # A rank that dies takes the step with it, so that the job ends at once instead of at a collective's time-out.
            # srun takes the cores per task from its own options alone since SLURM 22.05; without, a rank is held to one.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_gpu}"],
            "additional_parameters": {"requeue": True},
        }
        return {key: value for key, value in asked.items() if value is not None}


def minutes(text: str) -> int:
    """SLURM's time formats in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        raise UserError(f"--time '{text}' is not a time limit: give minutes, H:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(one) for one in rest if one is not None]
    if days is not None or len(numbers) == 3:
        hours, minute, second = (*numbers, 0, 0)[:3]
    else:
        hours, minute, second = 0, numbers[0], (*numbers, 0)[1]
    return int(days or 0) * 1440 + hours * 60 + minute + -(-second // 60)


def add_options(made: argparse.ArgumentParser) -> None:
    """Add every value of Allocation to a command line, hyphenated; not given means the site's value, then the default."""
    documents = _documents()
    for one in dataclasses.fields(Allocation):
        if one.name == "setup":
            continue
        if one.type == "bool":
            made.add_argument(
                f"--{one.name.replace('_', '-')}", action="store_true", default=None, help=documents[one.name]
            )
            continue
        kind = next(
            kind for name, kind in (("int", int), ("float", float), ("str", str)) if str(one.type).startswith(name)
        )
        default = "" if one.default is None else f" (default: {one.default})"
        made.add_argument(f"--{one.name.replace('_', '-')}", type=kind, help=documents[one.name] + default)
    made.add_argument(
        "--site", type=str, help=f"YAML file of this site's defaults (default: {SITE_FILE.name} in configs/)"
    )


def resolve(options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Allocation:
    """What the command line says, else the site's file, else `defaults`, else Allocation's. Raises UserError."""
    names = [one.name for one in dataclasses.fields(Allocation)]
    given = {name: options.get(name) for name in names if options.get(name) is not None}
    path = Path(options["site"]) if options.get("site") else configs() / SITE_FILE.name
    site = read_site(path) if options.get("site") or path.exists() else {}
    allocation = Allocation(**{**(defaults or {}), **site, **given})
    allocation.check()
    return allocation


def read_site(path: Path) -> dict[str, Any]:
    """A site file's values. Raises UserError for keys or types that do not fit."""
    values = read_yaml(path, "site file", "give an existing file to --site") or {}
    if not isinstance(values, dict):
        raise UserError(f"the site file {path} holds no 'key: value' lines: see configs/site.yaml")
    fields = {one.name: str(one.type) for one in dataclasses.fields(Allocation)}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"unknown key '{key}' in {path}: {nearest(str(key), fields)}")
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,), "float": (int, float), "str": (str,), "tuple": (list,), "bool": (bool,)
        }  # fmt: skip
        fitting = next(kind for name, kind in kinds.items() if fields[key].startswith(name))
        if value is not None and (not isinstance(value, fitting) or isinstance(value, bool) != (fitting == (bool,))):
            raise UserError(f"'{key}' in {path} is {value!r}: expected {fields[key]}")
    if any("\n" in str(line) for line in values.get("setup") or ()):
        raise UserError(f"'setup' in {path} holds a line break inside a line: give one list item per shell line")
    values = {key: value for key, value in values.items() if value is not None}
    return {**values, "setup": tuple(map(str, values["setup"]))} if "setup" in values else values


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "srun"))


def _documents() -> dict[str, str]:
    """Allocation's Args section, by name."""
    text = (Allocation.__doc__ or "").split("Args:")[1]
    return {
        name: " ".join(words.split())
        for name, words in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    }
