"""Who may write a run folder: one process; a later attempt of the same job takes over, and the earlier one is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.attempt import attempt_variables
from pipeline.base.command import UserError
from pipeline.base.lease import FencedError, Lease
from pipeline.base.lock import lock
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.state import Wanted
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints
from tests.patience import limit

FIRST = attempt_variables("SLURM_JOB_ID=17", 0, {})
RAY = "ray-20261101T000000-7"
REQUEUED = attempt_variables("SLURM_JOB_ID=17", 1, {})


def test_second_job_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    first = Lease(tmp_path, FIRST)
    for environment in ({}, FIRST, attempt_variables("SLURM_JOB_ID=18", 9, {})):
        with pytest.raises(UserError, match="another process is training"):
            Lease(tmp_path, environment)
    first.check()
    first.release()
    Lease(tmp_path, {}).check()


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (FIRST, REQUEUED),
        (attempt_variables(RAY, 1000, FIRST), attempt_variables(RAY, 2000, FIRST)),
        (attempt_variables(RAY, 1000, FIRST), attempt_variables("another", 9, REQUEUED)),  # Ray inside a SLURM job
        ({"TORCHELASTIC_RUN_ID": "my run"}, {"TORCHELASTIC_RUN_ID": "my run", "TORCHELASTIC_RESTART_COUNT": "1"}),
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


@pytest.mark.parametrize(
    ("lease", "taken_over"),
    [
        ({"job": "SLURM_JOB_ID=17", "attempt": 0, "attempts": {"SLURM_JOB_ID=17": 0}}, True),
        ({"job": "SLURM_JOB_ID=17", "attempt": 0}, False),  # before attempts of several launchers were kept
        ({"attempts": ["SLURM_JOB_ID=17"]}, False),
        ([], False),
    ],
)
def test_the_lease_of_an_older_version(tmp_path: Path, lease: Any, taken_over: bool) -> None:
    """The attempts that it names are understood; without them nothing is taken over, and nothing breaks."""
    values = {"token": "0", "host": "node1", **lease} if isinstance(lease, dict) else lease
    (tmp_path / ".lease").write_text(json.dumps(values))
    with open(tmp_path / ".lock", "w") as held:
        assert lock(held)
        if taken_over:
            Lease(tmp_path, REQUEUED).check()
        else:
            with pytest.raises(UserError, match="another process is training"):
                Lease(tmp_path, REQUEUED)


@pytest.mark.parametrize("attempt", ["", "1 2", "two"])
def test_a_job_without_its_attempt_is_refused(tmp_path: Path, attempt: str) -> None:
    with pytest.raises(UserError, match=r"PIPELINE_ATTEMPT .* must hold a whole number for each word of PIPELINE_JOB"):
        Lease(tmp_path, {"PIPELINE_JOB": "farm-5", "PIPELINE_ATTEMPT": attempt})
    Lease(tmp_path, {})


ATTEMPT = """
import sys
from pathlib import Path
from pipeline.base.lease import FencedError, Lease
lease = Lease(Path(sys.argv[1]))
print("has the run", flush=True)
input()
try:
    lease.check()
    print("keeps it")
except FencedError:
    print("has lost it")
"""


def test_a_launcher_is_added_by_two_variables(tmp_path: Path) -> None:
    """A launcher of another scheduler tells each attempt its job and number, and nothing else: the later one has the run."""

    def start(number: int) -> subprocess.Popen[str]:
        environment = {**os.environ, "PIPELINE_JOB": "farm-5", "PIPELINE_ATTEMPT": str(number)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", ATTEMPT, tmp_path], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    with start(4) as first:
        assert first.stdout is not None and first.stdout.readline() == "has the run\n"
        with start(5) as second, start(4) as again:
            assert second.stdout is not None and second.stdout.readline() == "has the run\n"
            # The refused one first: while the others wait, it ends by itself.
            refused, lost, kept = (process.communicate("\n", limit(60)) for process in (again, first, second))
    assert lost[0] == "has lost it\n" and kept[0] == "keeps it\n"
    assert refused[0] == "" and "another process is training" in refused[1]
