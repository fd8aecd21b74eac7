"""python -m pipeline.mistakes against scikit-learn's confusion matrix and the images themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import mistakes
from pipeline.base import command
from pipeline.data.dataset import Dataset
from pipeline.evaluation.scores import Scores, load, save
from pipeline.handover.mistakes import COLUMNS, MARGIN, THUMBNAIL, confident_mistakes
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.state import Wanted
from tests.pipeline.evaluation.nets_and_images import decoded, name_data, provenance, random_softmax, write_run


@pytest.fixture
def scored_run(ten_classes: Dataset, tmp_path: Path) -> Path:
    """A run whose net is right on about half of the images."""
    folder = write_run(tmp_path / "runs", "one", ten_classes)
    labels = ten_classes.split("train").labels
    random = np.random.default_rng(8)
    table = random_softmax(random, len(labels), ten_classes.classes).astype(np.float32)
    table[np.arange(len(labels)), labels] += random.random(len(labels))
    table = (table / table.sum(axis=1, keepdims=True)).astype(np.float16)
    made = provenance(split="train", dataset_sha256=ten_classes.sha256)
    scores = Scores(scores=table, ids=np.arange(len(labels)), labels=labels, provenance=made)
    save(scores, folder / "scores/center-train-00000100.npz")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: mistakes.main(list(map(str, arguments))))
    return int(ended.value.code or 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_tables_and_pictures(scored_run: Path, ten_classes: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.metrics import confusion_matrix  # here: it takes seconds, and every worker imports this module

    tracking = TrackingConfig(mlflow=False)
    open_tracker(scored_run, tracking, name="one", params={}, tags={}).close()
    assert run(scored_run, "--split", "train", "--pictures", 7, "--json") == 0
    folder = scored_run / "scores/center-train-00000100.mistakes"
    scores = load(scored_run / "scores/center-train-00000100.npz")
    matrix = confusion_matrix(scores.labels, scores.scores.argmax(axis=1), labels=np.arange(ten_classes.classes))

    pairs = {(int(r["label"]), int(r["predicted_label"])): int(r["images"]) for r in rows_of(folder / "confusions.csv")}
    wrong = matrix - np.diag(np.diag(matrix))
    assert pairs == {(int(t), int(p)): int(wrong[t, p]) for t, p in np.argwhere(wrong)}
    classes = rows_of(folder / "classes.csv")
    assert {int(r["label"]): int(r["top1_wrong"]) for r in classes} == dict(enumerate(wrong.sum(axis=1)))
    assert [float(r["top1_error_percent"]) for r in classes] == sorted(
        (float(r["top1_error_percent"]) for r in classes), reverse=True
    )
    assert sum(int(r["images"]) for r in classes) == 150

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["confusions"][0]["images"] == wrong.max()
    wanted = Wanted.read(scored_run)
    assert wanted is not None and [one for one in wanted.artifacts if one[0].endswith("mistakes.png")]
    check_sheet(folder / "mistakes.png", scores, ten_classes)


def check_sheet(path: Path, scores: Scores, dataset: Dataset) -> None:
    """The surest wrong answers, in order, each with its own picture."""
    predicted = scores.scores.argmax(axis=1)
    sure = [(-float(scores.scores[i, predicted[i]]), i) for i in range(len(scores)) if predicted[i] != scores.labels[i]]
    found = confident_mistakes(scores, 7)
    assert [one.sample for one in found] == [i for _, i in sorted(sure)[:7]]
    sheet = np.asarray(Image.open(path).convert("RGB"), np.float32)
    images = decoded(dataset)
    for number, one in enumerate(found):
        x = MARGIN + number % COLUMNS * (THUMBNAIL + MARGIN)
        y = (sheet.shape[0] - MARGIN) // 2 * (number // COLUMNS) + MARGIN
        shown = images[one.sample]
        centre = np.asarray(shown.resize((64, 64)), np.float32)[24:40, 24:40].mean(axis=(0, 1))
        place = sheet[y + THUMBNAIL * 3 // 8 : y + THUMBNAIL * 5 // 8, x + THUMBNAIL * 3 // 8 : x + THUMBNAIL * 5 // 8]
        longer, shorter = max(shown.size), min(shown.size)
        if shorter / longer > 0.9:  # other shapes are letterboxed: their middle is another part
            np.testing.assert_allclose(place.mean(axis=(0, 1)), centre, atol=12)


def test_images_are_read_from_a_url(scored_run: Path, ten_classes: Dataset, tmp_path: Path) -> None:
    name_data(scored_run, f"file://{ten_classes.folder}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert run(scored_run, "--split", "train", "--pictures", 3) == 0
    assert (scored_run / "scores/center-train-00000100.mistakes/mistakes.png").is_file()


def test_mistakes_get_one_sentence(
    scored_run: Path, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "absent"], "does not exist"),
        ([scored_run], "has no scores of the split 'val'"),
        ([scored_run, "--split", "train", "--protocol", "ten-crop"], "has no ten-crop scores"),
        ([scored_run, "--split", "train", "--pictures", 0], "--pictures must be at least 1 (got 0)"),
        ([scored_run, "--split", "train", "--data", tiny_data], "the scores are not of the dataset"),
    ]
    for arguments, sentence in cases:
        assert run(*arguments) == 2
        errors = capsys.readouterr().err
        assert sentence in errors and "Traceback" not in errors, (arguments, errors)


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    from tests.images import encode, photograph
    from tests.pipeline.data.small_datasets import write_dataset

    return write_dataset(tmp_path / "tiny", [encode(photograph(0, 40, 40))]).folder
