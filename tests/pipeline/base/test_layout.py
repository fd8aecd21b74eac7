"""The names in a run folder: made and read alike, and spelled in one place."""

from __future__ import annotations

import ast
from pathlib import Path

from pipeline.base import layout
from tests.helpers import ROOT

PRODUCT = ("pipeline", "launch", "data_prep", "paper")
# Words that mean other things elsewhere: a launcher, a step of training, an array in a score file ...
ALSO_WORDS = {"scores", "evaluation", "activity", "logs", "slurm", "ray", "checkpoints", "model", "profile", ".json"}


def test_checkpoints_are_listed_by_their_names(tmp_path: Path) -> None:
    assert layout.newest_checkpoint(tmp_path) is None
    made = [tmp_path / layout.checkpoint_name(iteration, "0123456789abcdef" * 4) for iteration in (400, 5, 99_999_999)]
    for path in (*made, tmp_path / "00000007.pt", tmp_path / "00000008-0123456789abcdef.pt.1.tmp"):
        path.touch()
    assert made[1].name == "00000005-0123456789abcdef.pt"
    assert layout.checkpoint_parts(made[1]) == (5, "0123456789abcdef")
    assert layout.checkpoints_in(tmp_path) == [(5, made[1]), (400, made[0]), (99_999_999, made[2])]
    assert layout.newest_checkpoint(tmp_path) == (99_999_999, made[2])


def test_score_files_are_listed_by_their_names(tmp_path: Path) -> None:
    (tmp_path / layout.SCORES).mkdir()
    kinds = [("final", ""), ("ema", ""), ("final", "-bf16"), ("final", ".partial")]
    for iteration in (200, 100):
        for weights, trial in kinds:
            layout.score_path_in(tmp_path, "center", "val", iteration, weights, trial).touch()
    for weights, suffix in (("final", ""), ("ema", "-ema")):
        files = layout.score_files_in(tmp_path, "center", "val", weights)
        assert files == [(n, tmp_path / f"scores/center-val-{n:08d}{suffix}.npz") for n in (100, 200)]
    assert sum(map(layout.is_score_file, (tmp_path / "scores").iterdir())) == 6


def test_failures_are_listed_by_attempt(tmp_path: Path) -> None:
    for attempt, rank in (("17.0", 3), ("17.1", -1)):
        layout.failure_note(tmp_path, attempt, rank).touch()
    assert dict(layout.failure_notes(tmp_path)) == {
        "17.0": tmp_path / "17.0-rank-3.json",
        "17.1": tmp_path / "17.1-rank--1.json",
    }
    assert layout.failure_notes(tmp_path, "17.1") == [("17.1", tmp_path / "17.1-rank--1.json")]


def test_jobs_are_listed_by_their_scripts(tmp_path: Path) -> None:
    (tmp_path / layout.SLURM).mkdir()
    for name in ("9_submission.sh", "10_submission.sh", "10_0_log.err"):
        (tmp_path / layout.SLURM / name).touch()
    assert layout.jobs_in(tmp_path) == ["9", "10"]


def test_no_other_module_spells_a_name() -> None:
    names = {value for name, value in vars(layout).items() if name.isupper()} - ALSO_WORDS
    assert {"config.yaml", "run.json", "metrics.jsonl", "responses.json", "ensemble.json", ".lock"} <= names
    spelled = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for package in PRODUCT
        for path in (ROOT / package).rglob("*.py")
        if path != Path(layout.__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not spelled, "\n".join(spelled)
