"""The nodes that a job asks SLURM for: the options of the command line, the site's defaults, submitit's parameters."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from pipeline.base.command import UserError, check_at_least

# What may stand in words that become part of a shell script on the nodes; submitit's quoting lets a newline through.
_PLAIN = re.compile(r"[A-Za-z0-9._,:=&|()*\[\]/@+-]+")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The nodes that a job asks for. The default is one node of 8 GPUs, as most clusters for training have.

    Args:
        nodes: number of nodes.
        gpus_per_node: GPUs of each node; one task (rank) per GPU. 0: CPU nodes.
        tasks_per_node: ranks on each node; left out, one per GPU, or 1 without GPUs.
        cpus_per_gpu: cores for each rank: DALI's decoding threads need them.
        mem_gb: memory of each node in GB; left out, the site's default.
        partition: SLURM partition; left out, the site's default.
        account: account to charge.
        qos: quality of service.
        constraint: features the nodes must have.
        time: time limit of one attempt: minutes, H:MM:SS, or D-HH:MM:SS. A longer training requeues itself.
        signal_delay: seconds before the time limit (or preemption) at which the job is told to save.
        requeue_limit: how many crashes in a row, without a newer checkpoint between them, are followed by a requeueing.
            Preemption, the time limit and lost nodes do not count.
        assume_shared: submit although the run folder or the dataset is on a file system of this host alone: the nodes
            see that file system too, or hold the same files in the same place. Each job looks for them when it starts.
        network_gbits: bandwidth between nodes in Gb/s, for the plan of `--dry-run`.
        device_name: part of the name of the nodes' GPU (H100), or of their CPU: the plan takes the rates that were measured
            on it. Needed where rates of several devices are stored.
        rates: file of the rates that bench/step.py and bench/scaling.py measured; left out, configs/rates.yaml.
        images_per_second: speed of this net on one device, for the plan, instead of a stored rate.
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

    def __post_init__(self) -> None:
        check_at_least(1, self, "nodes", "cpus_per_gpu", "tasks_per_node")
        check_at_least(0, self, "gpus_per_node", "signal_delay", "requeue_limit")
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _PLAIN.fullmatch(value):
                problem = f"{_option(name)} {value!r} holds characters that have no place there"
                raise UserError(f"{problem}: give the name that sinfo shows")
        minutes(self.time)
        if any("\n" in line for line in self.setup):
            raise UserError("'setup' holds a line break inside a line: give one list item per shell line")

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

    def sbatch_parameters(self, name: str) -> dict[str, Any]:
        """The parameters of submitit's SlurmExecutor, without `setup`."""
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
            # Since SLURM 22.05 srun takes the cores per task from its own options alone; without them a rank gets one core.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_gpu}"],
            "additional_parameters": {"requeue": True},
        }
        return {key: value for key, value in asked.items() if value is not None}


# As sbatch has them, with the same meaning and values.
SBATCH_NAMES = {
    "nodes": ("-N",),
    "partition": ("-p",),
    "account": ("-A",),
    "qos": ("-q",),
    "constraint": ("-C",),
    "time": ("-t",),
    "tasks_per_node": ("--ntasks-per-node",),
    "cpus_per_gpu": ("--cpus-per-task", "-c"),
}


def minutes(text: str) -> int:
    """SLURM's time formats in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        raise UserError(f"--time '{text}' is not a time limit: give minutes, H:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minute, second = (*numbers, 0, 0)[:3]
    else:
        hours, minute, second = 0, numbers[0], (*numbers, 0)[1]
    return int(days or 0) * 1440 + hours * 60 + minute + -(-second // 60)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every value of Allocation but `setup`. Not given, it is the site's value, else the default."""
    import docstring_parser  # here: bench.gpu's first call imports the launchers where this package is missing

    types = get_type_hints(Allocation)
    helps = {param.arg_name: param.description for param in docstring_parser.parse(Allocation.__doc__ or "").params}
    for field in dataclasses.fields(Allocation):
        name, text = field.name, " ".join((helps[field.name] or "").split()).rstrip(".")
        kind, *_ = get_args(types[name]) or (types[name],)  # int of `int | None`
        if kind is bool:
            parser.add_argument(_option(name), action="store_true", default=None, help=text)
        elif name != "setup":
            default = "" if field.default is None else f" (default: {field.default})"
            names = (_option(name), *SBATCH_NAMES.get(name, ()))
            parser.add_argument(*names, dest=name, type=kind, help=text + default)


def resolve(
    options: Mapping[str, Any], site: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Allocation:
    """The command line's values, else the site file's, else `defaults`, else Allocation's. Raises UserError."""
    names = [field.name for field in dataclasses.fields(Allocation)]
    given = {name: options[name] for name in names if options.get(name) is not None}
    sites = {name: site[name] for name in names if name in site}
    allocation = Allocation(**{**(defaults or {}), **sites, **given})
    # Not in __post_init__: a site file may set one of these two, and the command line the other.
    if allocation.minutes * 60 <= allocation.signal_delay:
        raise UserError(
            f"the time limit {allocation.time} is over before the {allocation.signal_delay} s that --signal-delay reserves for "
            "saving: give a longer --time"
        )
    return allocation


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "srun"))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
