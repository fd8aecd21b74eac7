"""Who may write a run folder: one process; a later attempt of the same job takes over, and the earlier one is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.command import UserError
from pipeline.base.lease import FencedError, Lease
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.state import Wanted
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints
from tests.patience import limit

FIRST = {"SLURM_JOB_ID": "17"}
RAY = {"PIPELINE_RAY_LAUNCH": "ray-20261101T000000-7"}
REQUEUED = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}


def test_second_job_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    first = Lease(tmp_path, FIRST)
    for environment in ({}, FIRST, {"SLURM_JOB_ID": "18", "SLURM_RESTART_COUNT": "9"}):
        with pytest.raises(UserError, match="another process is training"):
            Lease(tmp_path, environment)
    first.check()
    first.release()
    Lease(tmp_path, {}).check()


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (FIRST, REQUEUED),
        ({**FIRST, **RAY, "PIPELINE_RAY_START": "1000"}, {**FIRST, **RAY, "PIPELINE_RAY_START": "2000"}),
        ({**FIRST, **RAY}, {**REQUEUED, "PIPELINE_RAY_LAUNCH": "another"}),  # Ray inside a SLURM job
    ],
)
def test_later_attempt_of_the_job_takes_over(tmp_path: Path, first: dict[str, str], later: dict[str, str]) -> None:
    stale = Lease(tmp_path, first)
    current = Lease(tmp_path, later)
    current.check()
    with pytest.raises(FencedError, match="taken"):
        stale.check()
    # The stale one's checkpoints stay unwritten; the current one's are.
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), stale.check)
    checkpoints.save(1, {"iteration": 1})
    with pytest.raises(FencedError):
        checkpoints.wait()
    assert not (tmp_path / "checkpoints").exists()
    # Once the stale one is gone, its lock passes on: a third job is refused.
    stale.release()
    current.check()
    with pytest.raises(UserError):
        Lease(tmp_path, {})


def test_a_fenced_run_does_not_say_how_it_ended(tmp_path: Path) -> None:
    """Its files belong to the later attempt; and the process beside it, which tells MLflow, ends at once."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    stale = Lease(folder, FIRST)
    with (
        pytest.raises(FencedError),
        open_tracker(folder, TrackingConfig(), name="a", params={}, tags={}) as tracker,
    ):
        tracker.log("train", 1, {"loss": 1.0})
        written = (folder / "metrics.jsonl").read_bytes()
        tracker.journal.pending.append(b"a line that the disk has refused so far\n")
        Lease(folder, REQUEUED)
        stale.check()
    wanted = Wanted.read(folder)
    assert wanted is not None and (wanted.status, wanted.ended) == ("RUNNING", None)
    assert (folder / "metrics.jsonl").read_bytes() == written
    assert tracker.feeder.process.wait(limit(60)) == -signal.SIGKILL


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pipeline.base.lease import Lease; "
    code += "held = Lease(Path(sys.argv[1]), {}); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        with pytest.raises(UserError):
            Lease(tmp_path, {})
        holder.kill()
    Lease(tmp_path, {}).check()
