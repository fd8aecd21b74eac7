"""The attempt of a SLURM job that this process belongs to, by the variables that SLURM sets. Imports light modules alone."""

from __future__ import annotations

import os

from pipeline.base.attempt import attempt_variables


def job_name() -> str:
    """The job as the ranks are told of it, whichever launcher started them inside the job."""
    return f"SLURM_JOB_ID={os.environ['SLURM_JOB_ID']}"


def restarts() -> int:
    """How often SLURM has started the job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def slurm_variables() -> dict[str, str]:
    """What a launcher tells its ranks of the SLURM job that the launcher works in; {} outside SLURM."""
    return attempt_variables(job_name(), restarts(), os.environ) if "SLURM_JOB_ID" in os.environ else {}
