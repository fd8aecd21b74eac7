"""python -m pipeline.evaluate on datasets from elsewhere: known by content, refused where they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from tests.pipeline.data.small_datasets import replace_table
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, name_data, write_run


def test_a_run_trained_from_a_url_is_tested(
    digits: Path, run_evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local, remote = (write_run(tmp_path / "runs", name, Dataset(digits)) for name in ("local", "remote"))
    name_data(remote, f"file://{digits}")
    for folder, options in ((local, []), (remote, []), (remote, ["--data", f"file://{digits}", "--again"])):
        code, _, errors = run_evaluate(folder, *options)
        assert code == 0, errors
        scores = [run / "scores/center-val-00000100.npz" for run in (local, folder)]
        assert scores[0].read_bytes() == scores[1].read_bytes()


def test_a_dataset_that_was_moved_is_known_by_its_content(
    ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    shutil.copytree(ten_classes.folder, tmp_path / "data")
    folder = write_run(tmp_path / "runs", "one", Dataset(tmp_path / "data"))
    path = folder / "scores/center-train-00000100.npz"
    assert run_evaluate(folder, "--split", "train")[0] == 0
    before = path.read_bytes()
    path.unlink()
    (tmp_path / "data").rename(tmp_path / "moved")
    code, _, errors = run_evaluate(folder, "--split", "train")
    assert code == 2 and "is not a dataset folder" in errors
    code, _, errors = run_evaluate(folder, "--split", "train", "--data", tmp_path / "moved")
    assert code == 0, errors
    assert path.read_bytes() == before


def test_a_dataset_with_other_classes_is_refused(
    made_run: Path, ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        manifest["classes"][3:5] = manifest["classes"][4:2:-1]

    other = changed_copy(ten_classes, tmp_path / "other", swap)
    code, _, errors = run_evaluate(made_run, "--split", "train", "--data", other.folder)
    assert code == 2 and "Traceback" not in errors
    assert "class 3 of the dataset" in errors and "is n00000004, but one was trained with n00000003" in errors


def test_an_empty_split_is_one_sentence(
    made_run: Path, ten_classes: Dataset, run_evaluate: Run, tmp_path: Path
) -> None:
    none = {"samples": 0, "table": "none.samples.npy", "table_sha256": "", "shards": []}
    other = changed_copy(ten_classes, tmp_path / "other", lambda manifest: manifest["splits"].update(none=none))
    replace_table(other.folder, "none", np.load(other.folder / "train.samples.npy")[:0])
    code, _, errors = run_evaluate(made_run, "--split", "none", "--data", other.folder)
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1 and "Traceback" not in errors, errors
    assert "the split 'none'" in said[0] and "is empty" in said[0]
