"""Which attempt of which job a process is, and which attempt holds a run. Imports only light modules: a watch must start fast.

A launcher sets three environment variables of each rank: its own name, the job, and the number of this attempt of the job.
Where one launcher works inside another's job (Ray inside SLURM), each variable holds a word of each, separated by blanks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.base.layout import LEASE

LAUNCHER_VARIABLE = "PIPELINE_LAUNCHER"  # recorded with each attempt of the run
JOB_VARIABLE = "PIPELINE_JOB"  # the same text for every attempt of a job: "SLURM_JOB_ID=17"
ATTEMPT_VARIABLE = "PIPELINE_ATTEMPT"  # a whole number that grows from attempt to attempt
# torchrun's names for the same, read where no launcher has named a job.
_TORCHRUN_JOB, _TORCHRUN_ATTEMPT = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"

Attempts = Mapping[str, int]  # {job: number of the attempt}


class Holder(NamedTuple):
    """The process that last took the lease of a run."""

    token: str  # differs for each lease
    host: str
    attempts: Attempts


NOBODY = Holder("", "an unknown host", {})


def attempts_of(environment: Mapping[str, str]) -> Attempts:
    """The attempts that the launchers, or torchrun, named. Raises ValueError where a job has no number."""
    if JOB_VARIABLE in environment:
        jobs, numbers = (environment.get(name, "").split() for name in (JOB_VARIABLE, ATTEMPT_VARIABLE))
        return dict(zip(jobs, map(int, numbers), strict=True))
    if job := environment.get(_TORCHRUN_JOB):
        return {f"{_TORCHRUN_JOB}={job}": int(environment.get(_TORCHRUN_ATTEMPT, "0"))}
    return {}


def attempt_variables(job: str, attempt: int, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables that name this job and attempt to ranks, beside those that the launcher's environment `outer` names."""
    words = {JOB_VARIABLE: job, ATTEMPT_VARIABLE: str(attempt)}
    return {name: f"{outer.get(name, '')} {word}".strip() for name, word in words.items()}


def is_later(attempts: Attempts, than: Attempts) -> bool:
    """Whether `attempts` holds a later attempt of a job that is also in `than`."""
    return any(job in than and number > than[job] for job, number in attempts.items())


def read_holder(folder: Path) -> Holder:
    """The process that last took the lease of a run folder; NOBODY where there is no lease, or a damaged one.

    A lease of an older version names no attempts. Raises OSError where the file cannot be read.
    """
    try:
        # A network file system asks its server only when a file is opened, so each call opens the file anew.
        values = json.loads((folder / LEASE).read_text(encoding="utf-8"))
        attempts = {str(job): int(number) for job, number in values.get("attempts", {}).items()}
        return Holder(str(values["token"]), str(values["host"]), attempts)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return NOBODY
