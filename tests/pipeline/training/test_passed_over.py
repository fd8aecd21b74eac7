"""Checkpoints that cannot be used: each is passed over with its reason, counts for nothing, and pushes out no sound one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.base import regular
from pipeline.base.command import UserError
from pipeline.base.layout import checkpoint_name, checkpoints_in
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints, publish
from tests.pipeline.training.states import numbers, state


def put(folder: Path, content: bytes, iteration: int) -> Path:
    """A file whose digest is right, whatever it holds."""
    path = folder / checkpoint_name(iteration, hashlib.sha256(content).hexdigest())
    path.write_bytes(content)
    return path


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def a_link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target or path)

    return make


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_iteration(path: Path) -> None:
    other = publish(path.parent, 5, state(5))
    put(path.parent, other.read_bytes(), 99)
    for one in (path, other):
        one.unlink()


def not_of_torch(path: Path) -> None:
    path.unlink()
    put(path.parent, b"P5 1 1 255 x", 99)


def no_state(path: Path) -> None:
    path.unlink()
    contents = io.BytesIO()
    torch.save([1, 2], contents)
    put(path.parent, contents.getvalue(), 99)


UNSOUND: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (lambda path: os.truncate(path, 100), "its digest differs"),
    "a folder": (a_folder, "it is a folder"),
    "a pipe": (a_pipe, "it is a FIFO"),
    "a socket": (a_socket, "it is a socket"),
    "a device": (a_link("/dev/zero"), "it is a device"),
    "a link to itself": (a_link(""), "too many levels of symbolic links"),
    "a link to nowhere": (a_link("nowhere"), "no such file or directory"),
    "a disk that cannot read it": (a_link("/proc/self/mem"), "input/output error"),
    "another iteration inside": (another_iteration, "it holds iteration 5, unlike its name"),
    "a sound file, not of torch": (not_of_torch, "torch cannot read it"),
    "a file of torch without a state": (no_state, "it holds no training state"),
}


@pytest.mark.parametrize("damage", UNSOUND)
def test_what_cannot_be_used_is_passed_over_and_never_kept(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = UNSOUND[damage]
    publish(tmp_path, 10, state(10))
    make(publish(tmp_path, 20, state(20)))
    make(publish(tmp_path, 30, state(30)))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2, keep_best=False))
    found = checkpoints.newest()
    assert found is not None and found.iteration == 10
    said = capsys.readouterr().err
    assert "is passed over (" in said and reason in said
    checkpoints.go_on_from(found)
    assert max(numbers(tmp_path)) == 10, "by its name, too, the newest is the one that is used"
    assert len(list(tmp_path.glob("*.damaged"))) == (1 if "99" in said else 2)
    for number in (15, 20, 25):
        checkpoints.save(number, state(number))
        assert checkpoints.wait()
    assert numbers(tmp_path) == [20, 25]
    again = Checkpoints(tmp_path, CheckpointConfig()).newest()
    assert again is not None and again.iteration == 25


def test_a_state_that_is_none_of_this_run_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (10, 20):
        publish(tmp_path, number, state(number))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1))
    checkpoints.misfit = lambda state: "it is another net's" if state["iteration"] == 20 else None
    found = checkpoints.newest()
    assert found is not None and found.iteration == 10
    assert "(it is another net's)" in capsys.readouterr().err
    checkpoints.go_on_from(found)
    assert numbers(tmp_path) == [10]


def test_a_state_of_another_run_takes_no_place_when_others_are_removed(tmp_path: Path) -> None:
    for number in (10, 15, 20):
        publish(tmp_path, number, state(number))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=3))
    checkpoints.misfit = lambda state: "it is another net's" if state["iteration"] == 15 else None
    checkpoints.save(30, state(30))
    assert checkpoints.wait() and numbers(tmp_path) == [10, 20, 30]


def test_files_that_cannot_even_be_looked_at_are_not_taken_for_removed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that may be listed and not entered."""

    def failing(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    publish(tmp_path, 10, state(10))
    monkeypatch.setattr(regular.os, "open", failing)
    monkeypatch.setattr(regular.os, "lstat", failing)
    with pytest.raises(UserError, match=r"none of the checkpoints .*permission denied"):
        Checkpoints(tmp_path, CheckpointConfig()).newest()


def test_where_none_can_be_used_the_files_are_named_and_stay(tmp_path: Path) -> None:
    """A run of weeks does not begin anew without a word."""
    for number in (10, 20, 30, 40):
        os.truncate(publish(tmp_path, number, state(number)), 7)
    with pytest.raises(UserError, match=r"none of the checkpoints in .*00000040.*its digest differs; .* and 1 more"):
        Checkpoints(tmp_path, CheckpointConfig()).newest()
    assert numbers(tmp_path) == [10, 20, 30, 40]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(NotADirectoryError):
        Checkpoints(tmp_path / "checkpoints", CheckpointConfig()).newest()


def test_what_was_damaged_before_counts_for_nothing_when_others_are_removed(tmp_path: Path) -> None:
    """10 and 20 are sound, 30 and 40 are not; nobody has looked at 15, which is not either."""
    for number in (10, 15, 20, 30, 40):
        path = publish(tmp_path, number, state(number))
        if number not in (10, 20):
            os.truncate(path, 100)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=3, keep_best=False))
    found = checkpoints.newest()
    assert found is not None and found.iteration == 20
    checkpoints.go_on_from(found)
    checkpoints.save(25, state(25))
    assert checkpoints.wait() and numbers(tmp_path) == [10, 20, 25]


def test_files_of_a_later_iteration_push_out_nothing(tmp_path: Path) -> None:
    """Somebody puts them there while the run writes."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1, keep_best=False))
    for number in (60, 70):
        publish(tmp_path, number, state(number))
    checkpoints.save(25, state(25))
    assert checkpoints.wait() and numbers(tmp_path) == [25, 60, 70]


def test_of_one_iteration_the_last_that_was_written_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=3))
    for lr in (0.1, 0.2, 0.3, 0.4):  # of any order of digests
        checkpoints.save(10, {"iteration": 10, "lr": lr}, best_iteration=10)
    assert checkpoints.wait()
    assert numbers(tmp_path) == [10] and (found := checkpoints.newest()) and found.state["lr"] == 0.4


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (10, 20):
        publish(tmp_path, number, state(number))
    read: list[int] = []
    verify = checkpoint.read_verified

    def counted(path: Path) -> checkpoint.Checkpoint:
        read.append(int(path.name[:8]))
        return verify(path)

    monkeypatch.setattr(checkpoint, "read_verified", counted)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=4, keep_best=False))
    found = checkpoints.newest()
    assert found is not None
    checkpoints.go_on_from(found)
    for number in (30, 40):
        checkpoints.save(number, state(number))
        assert checkpoints.wait()
    assert read == [20, 10], "the newest to go on from it, the one before to keep it, those of its own never"
    os.truncate(checkpoints_in(tmp_path)[2][1], 100)
    checkpoints.save(50, state(50))
    assert checkpoints.wait() and numbers(tmp_path) == [10, 20, 40, 50]
