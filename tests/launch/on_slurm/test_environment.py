"""What sbatch is handed of a job that a job is submitted from; the reference is what submitit itself takes away there."""

from __future__ import annotations

import os

import pytest
from submitit.helpers import clean_env

from launch.on_slurm.environment import handed_on, submitting

OUTER = {
    "SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "4000", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_CPUS_PER_TASK": "2",
    "SLURM_HINT": "nomultithread", "SLURM_RESTART_COUNT": "3", "SLURM_EXPORT_ENV": "NONE", "SLURMD_NODENAME": "n1",
    "SRUN_CPUS_PER_TASK": "2", "SUBMITIT_EXECUTOR": "local", "MASTER_ADDR": "n1", "MASTER_PORT": "2", "RANK": "1",
    "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip
OWN = {"PIPELINE_JOB": "SLURM_JOB_ID=7", "PIPELINE_ATTEMPT": "3", "PIPELINE_LAUNCHER": "slurm", "PMIX_RANK": "1"}
OWN |= {"TORCHELASTIC_RUN_ID": "x", "CUDA_VISIBLE_DEVICES": "3"}
KEPT = {"HOME": "/h", "PATH": "/bin", "SBATCH_ACCOUNT": "mine", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "token"}


def test_nothing_of_the_job_around_it_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ):
        monkeypatch.delenv(name)
    for name, value in {**OUTER, **OWN, **KEPT}.items():
        monkeypatch.setenv(name, value)
    with clean_env():
        theirs = dict(os.environ)
    assert set(theirs) == {"HOME", "PATH", *OWN}  # SBATCH_ACCOUNT and SLURM_CONF, too, are gone there
    before = dict(os.environ)
    with submitting(["nodes"]):
        assert dict(os.environ) == KEPT
    assert dict(os.environ) == before


def test_outside_a_job_the_gpus_are_a_users_choice() -> None:
    assert handed_on({"CUDA_VISIBLE_DEVICES": "3"}, []) == {"CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize(
    ("variable", "options", "kept"),
    [
        ("SBATCH_PARTITION", ["nodes"], True),
        ("SBATCH_PARTITION", ["partition"], False),
        ("SBATCH_MEM_PER_NODE", ["mem-per-cpu"], False),
        ("SBATCH_MEM_PER_CPU", ["mem"], False),
        ("SBATCH_MEM_PER_CPU", ["nodes"], True),
        ("SBATCH_GRES", ["gpus-per-node"], True),
        ("SBATCH_GPUS_PER_NODE", ["gres"], False),
        ("SBATCH_REQ_SWITCH", ["switches"], False),
        *(
            (f"SBATCH_{name}", ["nodes"], False)
            for name in ("TIMELIMIT", "WAIT", "NO_REQUEUE", "SIGNAL", "JOB_NAME", "OUTPUT")
        ),
    ],
)
def test_what_is_asked_for_stands_above_sbatchs_variables(variable: str, options: list[str], kept: bool) -> None:
    assert (variable in handed_on({variable: "x"}, options)) is kept
