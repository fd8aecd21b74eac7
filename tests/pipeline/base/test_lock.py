"""Locks of files: taken by one process, asked for by others, and one answer where the file system has none."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from data_prep.workspace import locked_workspace
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.lease import Lease, is_held
from pipeline.base.lock import NoLocksError, is_locked, lock
from pipeline.process.world import World
from pipeline.run.config import Config, to_yaml
from tests.pipeline.small_runs import config_of, refusal
from tests.ranks import run_ranks

NO_LOCKS = "is on a file system without locks (flock): mount it with flock, or put --runs elsewhere"


def without_locks(number: int = errno.ENOSYS) -> Any:
    def flock(*_: object) -> None:
        raise OSError(number, "no locks here")

    return flock


def test_one_process_holds_a_lock_and_others_see_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with open(path, "w") as first, open(path, "w") as second:
        assert not is_locked(path)
        assert lock(first) and is_locked(path)
        assert not lock(second)
        first.close()
        assert not is_locked(path) and lock(second, wait=True)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks(number))
    (tmp_path / ".lock").touch()
    assert not is_locked(tmp_path / ".lock") and not is_held(tmp_path)
    with open(tmp_path / ".lock") as file, pytest.raises(NoLocksError, match="use another folder"):
        lock(file)
    with pytest.raises(UserError) as refused:
        Lease(tmp_path, {})
    assert str(refused.value) == f"{tmp_path} {NO_LOCKS}"
    assert not (tmp_path / ".lease").exists()


def test_any_other_error_of_a_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks(errno.EIO))
    with open(tmp_path / "lock", "w") as file, pytest.raises(OSError, match="no locks here"):
        lock(file)


def test_preparation_goes_on_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks())
    with locked_workspace(tmp_path):
        assert "cannot be locked: do not start a second preparation of it" in capsys.readouterr().err


def test_training_is_refused_without_locks(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: one sentence, exit code 2."""
    from pipeline import train
    from pipeline.base import command

    file, config = tmp_path / "config.yaml", config_of(digits, tmp_path / "runs", "unlocked")
    file.write_text(to_yaml(config))
    monkeypatch.setattr(fcntl, "flock", without_locks())
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: train.main(["--config", str(file)]))
    assert stopped.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: {config.run_folder} {NO_LOCKS}\n"


def refusal_without_locks(world: World, config: Config) -> str:
    fcntl.flock = without_locks()
    return refusal(world, config)


def test_every_rank_is_refused_without_locks(digits: Path, tmp_path: Path) -> None:
    config = config_of(digits, tmp_path, "unlocked")
    assert run_ranks(2, refusal_without_locks, config) == [f"{config.run_folder} {NO_LOCKS}"] * 2
