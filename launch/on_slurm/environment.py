"""What a submission hands on of this process's environment.

sbatch gives its environment to the job. If this process works in another job itself (an interactive one, a notebook's),
that job's variables would decide in the new one: how much memory its srun asks for, on which cores it binds the ranks. And
sbatch's variables (SBATCH_PARTITION) stand above the lines of a script, so above what was asked for here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from pipeline.base.attempt import ATTEMPT_VARIABLE, JOB_VARIABLE, LAUNCHER_VARIABLE

# Of the job, the step, and the ranks that this process belongs to. Outside a job they are their user's settings.
OUTER = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMI2_", "PMIX_", "TORCHELASTIC_")
RANKS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NAMES = frozenset((*RANKS, LAUNCHER_VARIABLE, JOB_VARIABLE, ATTEMPT_VARIABLE))
# Where SLURM is, and who asks: no job sets them otherwise than its node has them.
SLURMS = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"))
# Which GPUs the outer job was given. Outside a job they are their user's choice.
GPUS = frozenset(
    ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")
)

# sbatch's variables for what the launcher always says, or what would change how sbatch answers it.
ALWAYS = (
    *("ARRAY_INX", "WAIT", "SIGNAL", "REQUEUE", "NO_REQUEUE", "JOB_NAME", "OUTPUT", "ERROR", "INPUT", "OPEN_MODE"),
    *("TIMELIMIT", "GPUS", "GPUS_PER_SOCKET", "CPUS_PER_GPU"),
)
# Of one option of sbatch, where the name is another than the option's in capitals; of memory, SLURM takes one.
OTHERWISE = {
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), ("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE")),
    "switches": ("REQ_SWITCH", "WAIT4SWITCH"),
    "gres": ("GRES", "GPUS_PER_NODE", "GPUS_PER_TASK"),
    "gpus-per-node": ("GPUS_PER_NODE", "GPUS_PER_TASK"),
}


def handed_on(environment: Mapping[str, str], options: Iterable[str]) -> dict[str, str]:
    """The variables of `environment` that sbatch is to get. options: the names of those that the script gives."""
    given = {f"SBATCH_{name}" for option in options for name in _variables(option)}
    given |= {f"SBATCH_{name}" for name in ALWAYS}
    inside = "SLURM_JOB_ID" in environment
    left_out = given | NAMES | (GPUS if inside else set())
    return {
        name: value
        for name, value in environment.items()
        if name in SLURMS or not (name in left_out or (inside and name.startswith(OUTER)))
    }


def _variables(option: str) -> Iterable[str]:
    return OTHERWISE.get(option, (option.upper().replace("-", "_"),))


@contextmanager
def submitting(options: Iterable[str]) -> Iterator[None]:
    """In the block, this process's environment is what it hands on: submitit starts sbatch with it."""
    hidden = {name: os.environ[name] for name in os.environ.keys() - handed_on(os.environ, options).keys()}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
