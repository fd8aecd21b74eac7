"""An evaluation that cannot write its scores says so before it computes; one whose disk fills up goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import export, responses
from pipeline.data.dataset import Dataset
from pipeline.evaluation.partial import PartialScores
from tests.disks import fill, small_disk
from tests.pipeline.evaluation.nets_and_images import Run, write_run


@pytest.fixture
def run_on_small_disk(few_of_ten_classes: Dataset, tmp_path: Path) -> Iterator[Path]:
    """A run folder on a disk of 4 MB."""
    with small_disk(tmp_path / "disk", 4) as disk:
        yield write_run(disk / "runs", "one", few_of_ten_classes)


def never(*_: object, **__: object) -> None:
    raise AssertionError("computed before it was tried whether the result can be written")


def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    run_on_small_disk: Path, run_evaluate: Run, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk = run_on_small_disk, run_on_small_disk.parents[1]
    assert run_evaluate(run, "--split", "train")[0] == 0
    for place in ("evaluation.score_files.score_split", "responses.responses_of", "export.export"):
        monkeypatch.setattr(f"pipeline.{place}", never)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for ended in (
        run_evaluate(run, "--split", "train", "--protocol", "ten-crop"),
        run_command(responses.main, run, "--split", "train", "--threads", 1),
        run_command(export.main, run, "--out", disk / "exported"),
    ):
        assert "the file system is read-only" in sentence_of(ended)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    fill(disk)
    assert "the disk is full" in sentence_of(run_evaluate(run, "--split", "train", "--protocol", "ten-crop"))


def sentence_of(ended: tuple[int, str, str]) -> str:
    code, _, said = ended
    assert code == 2 and said.count("error: ") == 1, said
    return said


def test_a_disk_that_fills_up_costs_what_is_not_written_yet(
    run_on_small_disk: Path, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk = run_on_small_disk, run_on_small_disk.parents[1]
    arguments = [run, "--split", "train", "--protocol", "ten-crop"]
    assert run_evaluate(*arguments)[0] == 0
    (path,) = (run / "scores").glob("*.npz")
    whole = path.read_bytes()
    path.unlink()

    write, fillers = PartialScores._write, []

    def write_and_fill(self: PartialScores) -> None:
        write(self)
        if not fillers:
            fillers.append(fill(disk))

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.evaluation.partial.WRITE_SECONDS", 0.0)
        patched.setattr("pipeline.evaluation.scoring.GATHER_ROUNDS", 1)
        patched.setattr(PartialScores, "_write", write_and_fill)
        assert "the disk is full" in sentence_of(run_evaluate(*arguments))
    assert [one.name for one in (run / "scores").glob("*.npz")] == [f"{path.stem}.partial.npz"]
    fillers[0].unlink()
    assert run_evaluate(*arguments)[0] == 0
    assert path.read_bytes() == whole and not list((run / "scores").glob("*.partial.npz"))
