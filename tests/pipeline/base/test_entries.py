"""What stands under a run folder's names is a file where a run has a file, a folder where it has a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.layout import FILES, FOLDERS


def test_a_whole_run_and_links_to_its_parts_pass(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    for name in FOLDERS[1:]:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FOLDERS[0]).symlink_to("elsewhere")
    check_entries(tmp_path)
    check_entries(tmp_path / "nothing yet")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("kind", ["the other", "pipe", "loop", "nowhere", "device"])
def test_anything_else_is_named(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "the other":
        path.mkdir() if name in FILES else path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": name, "nowhere": "nowhere", "device": "/dev/full"}[kind])
    with pytest.raises(UserError, match=f"{name} is a .*, where a run has a .*: move it away"):
        check_entries(tmp_path)
