"""A request is made where it is typed and executed anywhere: on ranks with another working directory too."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.storage import open_dataset
from pipeline.evaluate import evaluate, read_request
from pipeline.evaluation.request import EvaluationRequest, TestedRun
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, figures, name_data, write_run


def test_relative_paths_begin_where_they_were_typed(
    few_of_ten_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the command line, and the dataset's in the run's config."""
    for name in ("typed", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "typed" / "data").symlink_to(few_of_ten_classes.folder)
    run = write_run(tmp_path / "typed" / "runs", "one", few_of_ten_classes)
    name_data(run, "data")
    monkeypatch.chdir(tmp_path / "typed")
    request = read_request(["runs/one", "--split", "train", "--threads", "1", "--scores", "out.npz", "--json"])
    sent = pickle.loads(pickle.dumps(request))
    assert sent == request and (sent.model, sent.base) == (TestedRun(target=Path("runs/one")), Path())
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sent.base == tmp_path / "typed"
    assert evaluate(sent) == 0
    assert figures(capsys.readouterr().out)["results"][0]["scores"] == str(tmp_path / "typed" / "out.npz")
    assert (tmp_path / "typed" / "out.npz").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_each_dataset_is_opened_once(
    few_of_ten_classes: Dataset, run_evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "runs", "one", few_of_ten_classes)
    other = changed_copy(few_of_ten_classes, tmp_path / "other", lambda manifest: manifest.update(seed=1))
    opened: list[str] = []

    def opening(location: str) -> Dataset:
        opened.append(location)
        return open_dataset(location)

    monkeypatch.setattr("pipeline.evaluation.datasets.open_dataset", opening)
    code, _, errors = run_evaluate(run, "--split", "train", "--data", other.folder)
    assert code == 0, errors
    assert opened == [str(other.folder), str(few_of_ten_classes.folder)]


RUN = EvaluationRequest(model=TestedRun(target=Path("runs/one")), directory=Path("/"))


@pytest.mark.parametrize(
    ("request_", "changes", "sentence"),
    [
        (RUN, {"protocols": ("tencrop",)}, "there is no protocol 'tencrop'"),
        (RUN.model, {"std": (1.0, 1.0, 1.0)}, "--std needs --mean"),
        (RUN, {"scores": Path("out.txt")}, "--scores names the one file"),
        (RUN, {"scores": Path("out.npz"), "protocols": ("center", "ten-crop")}, "give it with one --protocol"),
    ],
)
def test_a_request_checks_itself(
    request_: EvaluationRequest | TestedRun, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(request_, **changes)
