"""Which command lines of launch/slurm.py ask for this machine: known before the imports that read the rest."""

from __future__ import annotations

import pytest

from launch.on_slurm.command_line import is_here


@pytest.mark.parametrize(
    ("words", "here"),
    [
        ("--nodes 4", False), ("--cluster slurm", False), ("--cluster=local", True), ("--cluster debug", True),
        ("--cluster local --name slurm", True), ("--name local", False), ("--cluster", False),
    ],
)  # fmt: skip
def test_the_cluster_decides_and_no_other_word(words: str, here: bool) -> None:
    assert is_here(["launch/slurm.py", *words.split()]) is here
