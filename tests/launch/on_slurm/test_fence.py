"""The batch script's watch over the lease, run by a real shell: a later attempt of the same job ends it, no other job does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from launch.on_slurm.fence import batch_script_lines
from launch.ranks.failure import attempt
from pipeline.base.exits import EXIT_FENCED
from pipeline.base.lease import FencedError, Lease
from tests.patience import limit


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
    looks = shlex.quote(str(tmp_path / "looks"))
    looks_often = f"sleep() {{ echo >>{looks}; command sleep 0.02; }}"
    # A script that must live ends by itself when the watch has looked three times.
    waits = f'until [ "$(cat {looks} 2>/dev/null | wc -l)" -gt 3 ]; do command sleep 0.02; done'
    lasts = "command sleep 1000000" if code else waits
    script = "\n".join([looks_often, *batch_script_lines(tmp_path), lasts, "exit 0"])
    environment = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    process = subprocess.Popen(["bash", "-c", script], env=environment, start_new_session=True)
    try:
        assert process.wait(timeout=limit(60)) == code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the watch outlives the script that it has killed


def test_a_fenced_rank_made_no_mistake_of_its_users() -> None:
    """Which would end the attempt that has replaced it, where both belong to one launch (Ray)."""

    def fenced() -> int:
        raise FencedError("another attempt has taken the run over")

    code, failure = attempt(0, fenced)
    assert code == EXIT_FENCED and failure is not None and failure.sentence.startswith("another attempt")
