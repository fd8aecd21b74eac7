"""Trainings whose output is taken away: they go on, end with 0, and have computed the same. The full matrix: tests/attack."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.on_ray import worker
from launch.ranks.failure import Failure, note, read_notes
from tests.disks import small_disk
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
@pytest.mark.parametrize("redirections", [">/dev/full 2>&1", "2>&1 | head -1"])
@pytest.mark.parametrize(
    "launcher",
    [
        [*script("slurm.py"), "--cluster", "local", "--tasks-per-node", "2"],
        [*script("ray_train.py"), "--workers", "2"],
    ],
    ids=["submitit", "ray"],
)
def test_a_training_behind_another_launcher_without_output(
    launcher: list[str], redirections: str, tmp_path: Path, tiny: Path, reference: str
) -> None:
    line = f'"$@" {redirections}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line, "bash", *launcher, "--config", str(tiny), "--name", "run"],
        cwd=tmp_path, env=environment({"HOME": str(tmp_path)}), timeout=limit(250), check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert final_checkpoint(tmp_path / "runs" / "run") == reference


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, full but for a file `filling`."""
    with small_disk(tmp_path / "disk", 1) as disk:
        subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filling'}", "bs=4k"], capture_output=True, check=False)
        yield disk


def test_a_full_disk_takes_no_note_and_no_pointer(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind Ray the run folder holds notes of failures and pointers to checkpoints: neither may end what can wait."""
    failure = Failure(rank=0, time=1.0, code=1, sentence="it failed")
    note(failure, full_disk, "attempt", "log")
    assert "could not be noted" in capsys.readouterr().err and read_notes(full_disk, "attempt") == []
    assert not worker._takes_a_pointer(full_disk)
    (full_disk / "filling").unlink()
    assert worker._takes_a_pointer(full_disk)
    note(failure, full_disk, "attempt", "log")
    assert [noted.sentence for noted in read_notes(full_disk, "attempt")] == ["it failed"]
    assert sorted(path.name for path in full_disk.iterdir()) == ["attempt-rank-0.json"]
