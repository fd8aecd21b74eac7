"""The nodes that a job asks SLURM for: the options of the command line, the site's defaults, submitit's parameters."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

from launch.on_slurm import sbatch
from launch.on_slurm.sbatch import PREFIX, Options
from pipeline.base.command import UserError, check_at_least

# What may stand in words that become part of a shell script on the nodes; submitit's quoting lets a newline through.
_PLAIN = re.compile(r"[A-Za-z0-9._,:=&|()*\[\]/@+-]+")
_GPUS = re.compile(r"(?:([A-Za-z][\w.-]*):)?(\d+)")  # 4, or a100:4
_LONGEST_SIGNAL = 65_535  # seconds that sbatch takes for --signal
# Options of sbatch that give memory otherwise than by the node: SLURM takes one way.
_OTHER_MEMORY = ("mem-per-cpu", "mem-per-gpu")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The nodes that a job asks for. The default is one node of 8 GPUs, as most clusters for training have.

    Args:
        nodes: number of nodes.
        gpus_per_node: GPUs of each node, with their kind where a site has several: 4, a100:4; one task (rank) per GPU.
            0: CPU nodes.
        tasks_per_node: ranks on each node; left out, one per GPU, or 1 without GPUs.
        cpus_per_gpu: cores for each rank: DALI's decoding threads need them.
        mem_gb: memory of each node in GB (of 1024 MB); 0: all that it has; left out, the site's default.
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
        sbatch: further options of sbatch, by their long names: reservation, exclude, gres, mail-type ... True: one without a
            value; False: none. GPUs in `gres` stand in place of `gpus_per_node`.
    """

    nodes: int = 1
    gpus_per_node: int | str = 8
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
    sbatch: Options = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_at_least(1, self, "nodes", "cpus_per_gpu", "tasks_per_node")
        check_at_least(0, self, "signal_delay", "requeue_limit")
        if self.signal_delay > _LONGEST_SIGNAL:
            raise UserError(f"signal_delay is {self.signal_delay}: sbatch takes at most {_LONGEST_SIGNAL} s")
        if self.mem_gb is not None and not 0 <= self.mem_gb < math.inf:
            raise UserError(f"mem_gb is {self.mem_gb:g}: give the GB of a node, or 0 for all of its memory")
        for name in ("network_gbits", "images_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value:g}: give a number above 0")
        gpus_of(self.gpus_per_node)
        object.__setattr__(self, "sbatch", sbatch.canonical(self.sbatch))
        self._check_memory()
        for name in ("partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _PLAIN.fullmatch(value):
                problem = f"{_option(name)} {value!r} holds characters that have no place there"
                raise UserError(f"{problem}: give the name that sinfo shows")
        minutes(self.time)
        if any("\n" in line for line in self.setup):
            raise UserError("'setup' holds a line break inside a line: give one list item per shell line")

    def _check_memory(self) -> None:
        """Raise UserError where two values say how much memory a job gets."""
        names = [f"{PREFIX}{key}" for key in _OTHER_MEMORY if key in sbatch.given(self.sbatch)]
        names += [] if self.mem_gb is None else ["--mem-gb"]
        if len(names) > 1:
            raise UserError(f"{' and '.join(names)} both say how much memory a job gets: give one of them")

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return gpus_of(self.gpus_per_node)

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus or 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit, rounded up to SLURM's unit."""
        return minutes(self.time)

    def with_one_task(self) -> Allocation:
        """This allocation for one task: one node, and one GPU of the same kind where it has GPUs."""
        kind = str(self.gpus_per_node).rpartition(":")[0].partition(":")[0]
        gpus = min(1, self.gpus)
        return replace(
            self,
            nodes=1,
            tasks_per_node=1,
            gpus_per_node=f"{kind}:{gpus}" if kind and gpus else gpus,
            sbatch=sbatch.with_one_gpu(self.sbatch),
        )

    def sbatch_parameters(self, name: str) -> dict[str, Any]:
        """The parameters of submitit's SlurmExecutor, without `setup`."""
        own = sbatch.given(self.sbatch)
        asked: dict[str, Any] = {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": self.ranks_per_node,
            "cpus_per_task": self.cpus_per_gpu,
            "gpus_per_node": self.gpus_per_node if self.gpus and sbatch.gpus_in(own) is None else None,
            "mem": None if self.mem_gb is None else memory(self.mem_gb),
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "signal_delay_s": self.signal_delay,
            # A rank that dies takes the step with it, so that the job ends at once instead of at a collective's time-out.
            # Since SLURM 22.05 srun takes the cores per task from its own options alone; without them a rank gets one core.
            # Where sbatch was told to export nothing, its srun would not either: not even what `setup` has loaded.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_gpu}", "--export=ALL"],
            "additional_parameters": {**sbatch.lines(own), "requeue": True},
        }
        # submitit writes its own name as wckey where none is given; a cluster that enforces wckeys does not know it.
        return {"wckey": None, **{key: value for key, value in asked.items() if value is not None}}


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


def gpus_of(asked: int | str) -> int:
    """The number of GPUs in 4, "4", "a100:4" and "a100:2,v100:2". Raises UserError."""
    parts = [_GPUS.fullmatch(part) for part in str(asked).split(",")]
    if isinstance(asked, bool) or not all(parts) or (len(parts) > 1 and not all(part and part[1] for part in parts)):
        raise UserError(
            f"--gpus-per-node is '{asked}': give the number of a node's GPUs, 4, or with their kind, a100:4 "
            "(sinfo -o %G shows it)"
        )
    return sum(int(part[2]) for part in parts if part)


def memory(gigabytes: float) -> str:
    """A node's memory as sbatch takes it, in whole units: 200G, 192000M. 0 is all of the node's."""
    if gigabytes == int(gigabytes):
        return f"{int(gigabytes)}G" if gigabytes else "0"
    return f"{math.ceil(gigabytes * 1024)}M"


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
    """Add an option for every value of Allocation but `setup`. Not given, it is the site's value, else the default.

    The words are read by `sbatch.spelled` first.
    """
    import docstring_parser  # here: bench.gpu's first call imports the launchers where this package is missing

    types = get_type_hints(Allocation)
    helps = {param.arg_name: param.description for param in docstring_parser.parse(Allocation.__doc__ or "").params}
    for field in dataclasses.fields(Allocation):
        name, text = field.name, " ".join((helps[field.name] or "").split()).rstrip(".")
        kind, *_ = get_args(types[name]) or (types[name],)  # int of `int | None`
        if kind is bool:
            parser.add_argument(_option(name), action="store_true", default=None, help=text)
        elif name == "sbatch":
            given = "an option of sbatch, as in --sbatch.reservation school; it may stand there many times"
            parser.add_argument(sbatch.OPTION, action="append", metavar="KEY=VALUE", help=given)
        elif name == "gpus_per_node":
            parser.add_argument(_option(name), type=str, metavar="[KIND:]N", help=f"{text} (default: {field.default})")
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
    given["sbatch"] = sbatch.read(given.get("sbatch", ()))
    sites = {name: site[name] for name in names if name in site}
    values = _over(_over(dict(defaults or {}), sites), given)
    gres = sbatch.gpus_in(values["sbatch"])
    if gres is not None:
        values.setdefault("gpus_per_node", gres)
    allocation = Allocation(**values)
    # Not in __post_init__: a site file may set one of two such values, and the command line the other.
    if gres is not None and gres != allocation.gpus:
        raise UserError(
            f"{PREFIX}gres asks for {gres} GPUs of each node, --gpus-per-node for {allocation.gpus}: give one of the two"
        )
    if allocation.minutes * 60 <= allocation.signal_delay:
        raise UserError(
            f"the time limit {allocation.time} is over before the {allocation.signal_delay} s that --signal-delay reserves for "
            "saving: give a longer --time"
        )
    return allocation


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both, where those of `above` count; what they replace may have been said by another name."""
    low, high = sbatch.canonical(below.get("sbatch", {})), sbatch.canonical(above.get("sbatch", {}))
    kept = dict(below)
    if "gpus_per_node" in above:
        low = sbatch.without_gpus(low)
    if sbatch.gpus_in(high) is not None:
        kept.pop("gpus_per_node", None)
    elif "gres" in sbatch.given(high) and "gpus_per_node" not in above:
        high = sbatch.with_gpus_of(high, low)
    if "mem_gb" in above or any(key in sbatch.given(high) for key in _OTHER_MEMORY):
        low = {key: value for key, value in low.items() if key not in _OTHER_MEMORY}
        kept.pop("mem_gb", None)
    return {**kept, **above, "sbatch": {**low, **high}}


def has_slurm() -> bool:
    return all(shutil.which(command) for command in ("sbatch", "srun"))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
