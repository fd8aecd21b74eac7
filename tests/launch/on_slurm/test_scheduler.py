"""What is made of SLURM's answers, and of none: by a stand-in for scontrol; tests/cluster has the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.on_slurm import scheduler
from launch.on_slurm.allocation import Allocation
from pipeline.base.command import UserError


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that PATH begins with; nothing of SLURM is found elsewhere."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def scontrol(folder: Path, *lines: str) -> None:
    (folder / "scontrol").write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    (folder / "scontrol").chmod(0o755)


def test_without_slurm_it_says_nothing(commands: Path) -> None:
    assert scheduler.show("node") == []
    scheduler.check_partition(Allocation(partition="any", nodes=99))  # sbatch will tell


def test_what_slurm_does_not_know_is_nothing(commands: Path) -> None:
    scontrol(commands, 'echo "Invalid job id specified" >&2', "exit 1")
    assert scheduler.show("job", "7") == []


def test_a_controller_that_is_not_reached_is_said(commands: Path) -> None:
    scontrol(commands, 'echo "Unable to contact slurm controller (connect failure)" >&2', "exit 1")
    with pytest.raises(UserError, match="controller cannot be reached"):
        scheduler.show("job", "7")


def test_a_dict_for_each_line(commands: Path) -> None:
    scontrol(commands, "echo NodeName=n1 NodeHostName=h1 Partitions=a,b", "echo NodeName=n2 OS=Linux 6.1")
    assert scheduler.show("node") == [
        {"NodeName": "n1", "NodeHostName": "h1", "Partitions": "a,b"},
        {"NodeName": "n2", "OS": "Linux", "6.1": ""},
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("printf 'PartitionName=gpu MaxTime=Partition_Limit TotalNodes=(null)\\n'",),
        ("printf 'Default=YES State=UP\\n'",),
        ("printf 'PartitionName=gpu Comment=\\377\\n'",),
    ],
    ids=["no numbers", "no name", "another encoding"],
)
def test_what_slurm_does_not_tell_is_left_to_sbatch(commands: Path, lines: tuple[str, ...]) -> None:
    scontrol(commands, *lines)
    scheduler.check_partition(Allocation(partition="gpu", nodes=99))


def test_a_scontrol_that_hangs_or_is_no_program_is_said(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TIMEOUT_SECONDS", 0.1)
    scontrol(commands, "while :; do :; done")
    with pytest.raises(UserError, match="did not answer"):
        scheduler.show("job", "7")
    (commands / "scontrol").write_text("no program")
    with pytest.raises(UserError, match="scontrol cannot be run"):
        scheduler.show("job", "7")
