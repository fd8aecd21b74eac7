"""What submitit ships to the nodes: the port where the ranks meet, and the GPUs that a rank on this machine sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.on_slurm.allocation import Allocation
from launch.on_slurm.job import FIRST_PORT, LAST_PORT, LAUNCHERS_VISIBLE, port_of
from launch.on_slurm.submission import run_here
from launch.ranks.work import Command


def test_ports_of_neighbouring_jobs_and_attempts_differ() -> None:
    """Jobs of one array share nodes, and each may have been requeued: no sum of both numbers, which are then the same."""
    attempts = [(str(job), restarts) for job in range(1000, 1100) for restarts in range(4)]
    ports = [port_of(*one) for one in attempts]
    assert ports == [port_of(*one) for one in attempts]
    assert all(FIRST_PORT <= port < LAST_PORT for port in ports)
    assert len(set(ports)) > 380


@pytest.mark.parametrize(
    ("value", "gpus", "seen"),
    [("2,3", 2, "2,3"), (None, 0, "not set"), ("", 1, "")],
    ids=["chosen GPUs", "not set", "hidden GPUs"],
)
def test_a_local_job_sees_the_gpus_that_its_launcher_sees(
    value: str | None, gpus: int, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real job of submitit, whose local executor sets the variable to 0,1 or to nothing."""
    if value is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setenv(LAUNCHERS_VISIBLE, "7")  # of a job around this one
    words = ("sh", "-c", f"echo ${{CUDA_VISIBLE_DEVICES-not set}} ${LAUNCHERS_VISIBLE} > {tmp_path / 'seen'}")
    allocation = Allocation(gpus_per_node=gpus, tasks_per_node=1, time="30")
    assert run_here(Command("seen", tmp_path, words), allocation, "local") == 0
    assert (tmp_path / "seen").read_text().strip() == seen
