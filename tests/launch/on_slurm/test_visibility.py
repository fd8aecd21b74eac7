"""Shared or not: file system types compared with findmnt's, and the shell lines of the first step run by a real shell."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from launch.on_slurm.allocation import Allocation
from launch.on_slurm.visibility import LOCAL, batch_script_lines, check_shared, filesystem
from pipeline.base.command import UserError
from tests.conftest import skip_without


@pytest.mark.parametrize("place", ["/", "/proc/self", "/dev/shm", "here"])
def test_types_as_findmnt_says(place: str, tmp_path: Path) -> None:
    if shutil.which("findmnt") is None:
        skip_without("needs findmnt (apt-get install util-linux)")
    path = tmp_path if place == "here" else Path(place)
    found = subprocess.run(
        ["findmnt", "--noheadings", "--first-only", "--output", "FSTYPE", "--target", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert filesystem(path / "not" / "there" / "yet")[0] == found.stdout.split()[0]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where a SLURM is looked for: a stand-in for scontrol, written there, says which nodes there are."""
    (commands := tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(commands))
    return commands / "scontrol"


def nodes(scontrol: Path, *names: str) -> None:
    scontrol.write_text("#!/bin/sh\n" + "".join(f"echo NodeName={n} NodeHostName={n} Partitions=gpu\n" for n in names))
    scontrol.chmod(0o755)


def local_place() -> Path:
    """A folder, not made yet, on a file system of this host alone: /tmp may be any."""
    return next(Path(place) for place in ("/dev/shm", "/dev", "/run", "/") if filesystem(Path(place))[0] in LOCAL) / "a"


@pytest.mark.parametrize("names", [(), ("node1", "node2")], ids=["no SLURM", "a SLURM of other hosts"])
def test_a_local_folder_is_refused(scontrol: Path, names: tuple[str, ...]) -> None:
    if names:
        nodes(scontrol, *names)
    place = local_place()
    with pytest.raises(UserError, match="only this host sees"):
        check_shared(Allocation(nodes=2), [place])
    check_shared(Allocation(nodes=2, assume_shared=True), [place])
    check_shared(Allocation(nodes=2), [Path("/proc/self")])  # any type that is not known to be local


def test_a_slurm_of_this_host_alone_sees_what_it_sees(scontrol: Path) -> None:
    here = socket.gethostname().partition(".")[0]
    nodes(scontrol, here)
    check_shared(Allocation(nodes=1), [local_place()])
    nodes(scontrol, here, "node2")
    with pytest.raises(UserError, match="only this host sees"):
        check_shared(Allocation(nodes=1), [local_place()])


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
