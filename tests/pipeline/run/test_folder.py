"""A run folder that is damaged: one sentence on every rank, and nothing in it is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paper.state import state_in
from pipeline.base.command import UserError
from pipeline.base.layout import checkpoints_in
from pipeline.evaluation.nets import find_checkpoint, open_checkpoint
from pipeline.run.config import Config, to_yaml
from pipeline.run.folder import check_metrics, foreign, read_facts
from pipeline.training.checkpoint import publish, read_verified
from tests.fleet import Fleet
from tests.pipeline.small_runs import refusal, series, weights
from tests.ranks import run_ranks


@pytest.fixture
def copied(undisturbed: Config, tmp_path: Path) -> Config:
    """A finished run."""
    config = replace(undisturbed, runs=str(tmp_path))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    (config.run_folder / "config.yaml").write_text(to_yaml(config))
    return config


@pytest.fixture
def half_done(copied: Config) -> Config:
    """The same run as it was at its last checkpoint but one."""
    (*_, (_, last)) = checkpoints_in(copied.run_folder / "checkpoints")
    last.unlink()
    shutil.rmtree(copied.run_folder / "model", ignore_errors=True)
    return copied


def contents(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", ".lease", ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.parent.name != "activity"}


def cut_last_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize("damage", [Path.unlink, cut_last_line], ids=["deleted", "cut"])
def test_lost_metrics_are_not_passed_over(half_done: Config, damage: Callable[[Path], None]) -> None:
    folder = half_done.run_folder
    damage(folder / "metrics.jsonl")
    before = contents(folder)
    sentences = run_ranks(2, refusal, half_done)
    assert sentences == sentences[:1] * 2
    assert "metrics.jsonl lacks lines that stood there" in sentences[0] and "make a file" in sentences[0]
    assert contents(folder) == before
    (folder / "metrics.lost").touch()
    job = Fleet(half_done, 1, folder.parent / "logs")
    assert job.wait(120) == [0], job.said(0)
    assert "warning: " in job.said(0) and "metrics.lost is there" in job.said(0)


def test_a_checkpoint_of_an_earlier_version_names_no_lines(tmp_path: Path) -> None:
    check_metrics(tmp_path, {})
    with pytest.raises(UserError, match="train of iteration 1,000"):
        check_metrics(tmp_path, {"train": 1000})


def test_a_run_goes_on_from_an_earlier_checkpoint_as_if_the_newest_had_never_been(
    copied: Config, undisturbed: Config
) -> None:
    """The newest two are none of this run: another net's, and one under a false name. Both get another name."""
    folder = copied.run_folder / "checkpoints"
    found = checkpoints_in(folder)
    state = read_verified(found[0][1]).state
    found[-1][1].unlink()
    wrong = {**state, "iteration": 45, "model": {**state["model"], "fc.bias": torch.zeros(3)}}
    publish(folder, 45, wrong)
    shutil.copy(found[0][1], folder / f"00000099{found[0][1].name[8:]}")
    job = Fleet(copied, 1, copied.run_folder.parent / "logs")
    assert job.wait(120) == [0], job.said(0)
    said = job.said(0)
    assert "it holds another net: its fc.bias is [3], not [10]" in said and "unlike its name" in said
    assert len(list(folder.glob("*.damaged"))) == 2
    assert weights(copied) == weights(undisturbed) and series(copied) == series(undisturbed)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b'{"attempts": 3}'),
        ("run.json", b"[" * 100_000),
        ("run.json", b"\xff\xfe"),
        ("config.yaml", b"\xff\xfe"),
        ("config.yaml", b"[" * 100_000),
        ("config.yaml", b"arch: resnet8\nof_a_newer_version: 1\n"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n"),
        ("metrics.jsonl", b'{"kind": "train", "iteration": Infinity, "time": 1}\n'),
    ],
)
def test_a_damaged_file_is_named(half_done: Config, name: str, content: bytes) -> None:
    (half_done.run_folder / name).write_bytes(content)
    before = contents(half_done.run_folder)
    (sentence,) = run_ranks(1, refusal, half_done)
    assert name in sentence and contents(half_done.run_folder) == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b'{"token": 1}', b"[" * 100_000, b"null"])
def test_what_only_says_who_writes_and_what_mlflow_knows_is_made_again(half_done: Config, content: bytes) -> None:
    folder = half_done.run_folder
    for name in (".lease", ".lock", "tracking.json", "mlflow.json"):
        (folder / name).write_bytes(content)
    job = Fleet(half_done, 1, folder.parent / "logs")
    assert job.wait(120) == [0], job.said(0)
    assert json.loads((folder / "tracking.json").read_text())["status"] == "FINISHED"


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", ".lock", "activity"])
def test_what_is_of_another_kind_is_named(half_done: Config, name: str) -> None:
    path = half_done.run_folder / name
    path.rename(path.with_name("kept")) if path.exists() else None
    os.mkfifo(path)
    (sentence,) = run_ranks(1, refusal, half_done)
    assert f"{name} is a FIFO" in sentence


def test_facts_of_attempts_that_are_no_list(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"attempts": {"a": 1}}')
    with pytest.raises(UserError, match="is damaged"):
        read_facts(tmp_path)


def test_a_checkpoint_of_another_run_is_recognised(undisturbed: Config) -> None:
    state = read_verified(checkpoints_in(undisturbed.run_folder / "checkpoints")[-1][1]).state
    data = read_facts(undisturbed.run_folder)["dataset_sha256"]
    assert foreign(state, undisturbed, data) is None
    assert foreign(state, replace(undisturbed, name="elsewhere", threads=3), None) is None
    assert foreign(state, replace(undisturbed, seed=9), data) == "it is of another run (seed: 0 -> 9)"
    assert foreign(state, undisturbed, "0" * 64) == "it is of another run (the dataset's content)"
    of_another_version = {**state["origin"]["values"], "a_key_of_another_version": 1}
    assert foreign({"origin": {**state["origin"], "values": of_another_version}}, undisturbed, data) is None
    assert foreign({"iteration": 3}, undisturbed, data) is None, "of a version that recorded nothing"


def test_a_run_is_not_tested_on_anothers_checkpoint(copied: Config, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied.run_folder / "checkpoints"
    newest = checkpoints_in(folder)[-1][1]
    state = read_verified(newest).state
    state["iteration"], state["origin"]["values"]["seed"] = 60, 9
    other = publish(folder, 60, state)
    assert find_checkpoint(copied.run_folder) == newest
    assert (state_in(copied.run_folder).kind, state_in(copied.run_folder).iteration) == ("finished", 50)
    assert f"{other.name} is passed over (it is of another run (seed: 9 -> 0))" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is not of the run .*seed: 9 -> 0"):
        open_checkpoint(other, "final")


def remove_the_folder(rank: int) -> None:
    from pipeline.loop.trainer import Trainer

    update = Trainer.update

    def removing(trainer: Trainer, *batch: object) -> None:
        if trainer.progress.iteration == 12:
            shutil.rmtree(trainer.config.run_folder)
        update(trainer, *batch)  # type: ignore[arg-type]

    Trainer.update = removing  # type: ignore[method-assign, assignment]


def test_a_folder_that_is_removed_under_a_training_is_said(half_done: Config) -> None:
    shutil.rmtree(half_done.run_folder)
    job = Fleet(half_done, 1, Path(half_done.runs) / "logs", remove_the_folder)
    (code,) = job.wait(120)
    assert code and "is gone or damaged (was the run folder moved or removed?)" in job.said(0)
    assert not (half_done.run_folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"name": "a" * 300}, "is 300 letters long"), ({"runs": "a\0b"}, "NUL"), ({"data": "\0"}, "NUL")],
)
def test_names_that_no_file_system_takes(undisturbed: Config, change: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(undisturbed, **change)
