"""launch/status.py: when a run is over, by what SLURM (a stand-in that says what it is told to) and the run folder say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch import status
from pipeline.base.lease import Lease


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that job 7 was submitted from and that has not begun; the job's state stands in PATH's file `state`."""
    commands, folder = tmp_path / "bin", tmp_path / "runs" / "a"
    commands.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\necho "JobId=7 $(cat {commands}/state) Restarts=0"\n')
        (commands / name).chmod(0o755)
    (commands / "state").write_text("JobState=PENDING Reason=Resources")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm" / "7_submission.sh").touch()
    return folder


def test_a_job_that_waits_is_not_over(run: Path) -> None:
    """It has 0 of 0 iterations, as long as there is no config in the run folder."""
    found = status.read(run)
    assert found.jobs == {"7": "PENDING (Resources)"} and not found.over
    (run.parents[1] / "bin" / "state").write_text("JobState=COMPLETED Reason=None")
    assert status.read(run).over
    assert replace(found, iteration=8, iterations=8).over and not replace(found, iteration=7, iterations=8).over


def test_without_a_job_the_lease_tells(run: Path) -> None:
    """As behind launch/local.py and launch/ray_train.py."""
    (run / "slurm" / "7_submission.sh").unlink()
    assert status.read(run).over
    lease = Lease(run, {})
    assert not status.read(run).over
    lease.release()
    assert status.read(run).over
