"""Shared or not: file system types compared with findmnt's, and the shell lines of the first step run by a real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.allocation import Allocation
from launch.visibility import LOCAL, batch_script_lines, check_shared, filesystem
from pipeline.command import UserError


@pytest.mark.parametrize("place", ["/", "/proc/self", "/dev/shm", "here"])
def test_types_as_findmnt_says(place: str, tmp_path: Path) -> None:
    path = tmp_path if place == "here" else Path(place)
    found = subprocess.run(
        ["findmnt", "--noheadings", "--first-only", "--output", "FSTYPE", "--target", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert filesystem(path / "not" / "there" / "yet")[0] == found.stdout.split()[0]


def test_a_local_folder_is_refused(tmp_path: Path) -> None:
    assert filesystem(tmp_path)[0] in LOCAL
    with pytest.raises(UserError, match="only this host sees"):
        check_shared(Allocation(nodes=2), [tmp_path / "runs" / "a"])
    check_shared(Allocation(nodes=2, assume_shared=True), [tmp_path])
    check_shared(Allocation(nodes=2), [Path("/proc/self")])  # any type that is not known to be local


@pytest.mark.parametrize(("names", "code"), [(("here", "it's; $(here)"), 0), (("here", "gone"), 2), (("empty",), 2)])
def test_first_step(tmp_path: Path, names: tuple[str, ...], code: int) -> None:
    for name in ("here", "it's; $(here)"):
        (tmp_path / name / "something").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    lines = batch_script_lines([tmp_path / name for name in names])
    stand_in = 'srun() { while [ "$1" != sh ]; do shift; done; SLURMD_NODENAME=node1 "$@"; }'
    done = subprocess.run(["bash", "-c", "\n".join([stand_in, *lines, "true"])], capture_output=True, text=True)
    assert done.returncode == code
    sentence = f"error: node1 sees nothing in {tmp_path}/{names[-1]}: put it on storage that every node mounts\n"
    assert done.stderr == ("" if code == 0 else sentence)
