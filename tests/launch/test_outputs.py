"""Trainings whose output is taken away: they go on, end with 0, and have computed the same. The full matrix: tests/attack."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.launch.launchers import environment, final_checkpoint, script
from tests.patience import limit


@pytest.mark.costly("each rank imports everything, as a user's do")
@pytest.mark.parametrize("redirections", ["2>&1 | head -1", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_a_training_without_output(redirections: str, tmp_path: Path, tiny: Path, reference: str) -> None:
    procs = "2" if "full" in redirections else "1"
    line = f'"$@" {redirections}; exit "${{PIPESTATUS[0]}}"'
    command = [*script("local.py"), "--config", str(tiny), "--name", "run", "--procs", procs, "--json"]
    done = subprocess.run(
        ["bash", "-c", line, "bash", *command],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=limit(250), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert final_checkpoint(tmp_path / "runs" / "run") == reference
    assert "Traceback" not in done.stdout + done.stderr and "Exception ignored" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_training_of_submitit_without_output(tmp_path: Path, tiny: Path, reference: str) -> None:
    command = [
        *script("slurm.py"),
        "--cluster",
        "local",
        "--tasks-per-node",
        "2",
        "--config",
        str(tiny),
        "--name",
        "run",
    ]
    done = subprocess.run(
        ["bash", "-c", '"$@" >/dev/full 2>&1', "bash", *command],
        cwd=tmp_path, env=environment(), timeout=limit(250), check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert final_checkpoint(tmp_path / "runs" / "run") == reference
