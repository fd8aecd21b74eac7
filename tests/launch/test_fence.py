"""The batch script's watch over the lease, run by a real shell: a later attempt of the same job ends it, no other job does."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from launch.fence import batch_script_lines
from pipeline.lease import Lease


@pytest.mark.parametrize(
    ("holder", "restarts", "code"),
    [
        ("17", "2", -signal.SIGKILL),
        ("17", "1", 0),  # this attempt's own
        ("170", "2", 0),  # of another job, whose number begins with the same digits
        ("1", "2", 0),
    ],
)
def test_the_batch_script_ends_for_a_later_attempt_of_its_own_job(
    tmp_path: Path, holder: str, restarts: str, code: int
) -> None:
    Lease(tmp_path, {"SLURM_JOB_ID": holder, "SLURM_RESTART_COUNT": restarts}).release()
    looks_often = "sleep() { command sleep 0.02; }"
    script = "\n".join([looks_often, *batch_script_lines(tmp_path), "command sleep 1.5", "exit 0"])
    environment = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    process = subprocess.Popen(["bash", "-c", script], env=environment, start_new_session=True)
    try:
        assert process.wait(timeout=20) == code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the watch outlives the script that it has killed
