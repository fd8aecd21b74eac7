"""The score file: what is written is read back, what is damaged is refused; the answer order is a stable sort's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.command import UserError
from pipeline.evaluation.partial import PartialScores
from pipeline.evaluation.scores import Scores, load, ranks, read_provenance, save
from tests.pipeline.evaluation.nets_and_images import provenance, random_softmax


def made(images: int = 50, classes: int = 12, seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    table = random_softmax(random, images, classes)
    return Scores(scores=table, ids=np.arange(images), labels=labels, provenance=provenance())


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    scores, path = made(), tmp_path / "scores" / "one.npz"
    save(scores, path)
    again = load(path)
    assert again.provenance == scores.provenance and again.path == path
    for name in ("scores", "ids", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scores, name))
    assert read_provenance(path) == (scores.provenance, scores.labels_sha256)
    assert [one.name for one in path.parent.iterdir()] == ["one.npz"]


def test_equal_scores_are_equal_bytes(tmp_path: Path) -> None:
    save(made(), tmp_path / "a.npz")
    save(made(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("k", [1, 5])
def test_errors_equal_scikit_learns_where_no_scores_are_tied(k: int) -> None:
    from sklearn.metrics import top_k_accuracy_score  # here: it takes seconds, and every worker imports this module

    random = np.random.default_rng(3)
    table = random.permuted(np.tile(np.arange(20, dtype=np.float32), (300, 1)), axis=1)
    labels = random.integers(0, 20, 300)
    accuracy = top_k_accuracy_score(labels, table, k=k, labels=np.arange(20))
    wrong = ranks(torch.from_numpy(table), torch.from_numpy(labels)) >= k
    assert wrong.double().mean() == pytest.approx(1 - accuracy)


def test_ranks_are_places_in_a_stable_sort_by_falling_score() -> None:
    random = np.random.default_rng(4)
    table = (random.integers(0, 4, (3000, 7)) / 8).astype(np.float16)  # many ties; more rows than one chunk
    labels = random.integers(0, 7, 3000)
    expected = [
        sorted(range(7), key=lambda c, row=row: (-float(row[c]), c)).index(label)  # type: ignore[misc]
        for row, label in zip(table, labels, strict=True)
    ]
    assert ranks(torch.from_numpy(table), torch.from_numpy(labels)).tolist() == expected


def test_a_nan_is_never_right() -> None:
    assert ranks(torch.full((1, 3), torch.nan), torch.tensor([0])) >= 1


def test_errors_of_an_unlabelled_split_are_none() -> None:
    scores = dataclasses.replace(made(), labels=np.full(50, -1))
    assert scores.errors(1) is None and scores.errors(5) is None


def test_fingerprints_ignore_names_and_nothing_else() -> None:
    one = provenance()
    assert provenance(checkpoint="x.pt", iteration=None, weights="file").fingerprint == one.fingerprint
    for change in (
        {"weights_sha256": "c"},
        {"protocol": "ten-crop"},
        {"crop": 30},
        {"precision": "bf16"},
        {"stride": "v1.5"},
    ):
        assert provenance(**change).fingerprint != one.fingerprint


def spoiled(what: str) -> dict[str, Any]:
    scores = made()
    table, labels = scores.scores.copy(), scores.labels.copy()
    if what == "nan":
        table[17, 3] = np.nan
    if what == "negative":
        table[17, 3] = -0.25
    if what == "sum":
        table[17] /= 2
    if what == "label":
        labels[0] = 12
    ids = scores.ids[::-1].copy() if what == "order" else scores.ids
    return {"scores": table, "labels": labels, "ids": ids, "provenance": scores.provenance}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nan", r"row 17 of .* is not a softmax"),
        ("negative", r"row 17 of .* is not a softmax"),
        ("sum", r"row 17 of .* a sum of 0\.5"),
        ("label", "labels .* with 12 classes"),
        ("order", "its ids are not 0 to N - 1 in order"),
    ],
)
def test_what_is_no_softmax_is_refused(tmp_path: Path, what: str, sentence: str) -> None:
    save(Scores(**spoiled(what)), tmp_path / "bad.npz")
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "bad.npz")


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    scores = made()
    save(dataclasses.replace(scores, scores=scores.scores.astype(np.float32)), tmp_path / "wide.npz")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="float32"):
        load(tmp_path / "wide.npz")


def test_an_empty_file_of_scores_is_refused(tmp_path: Path) -> None:
    save(made(images=0), tmp_path / "empty.npz")
    with pytest.raises(UserError, match="empty"):
        load(tmp_path / "empty.npz")


def test_damage_and_absence_are_told(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    with pytest.raises(UserError, match="there is no score file"):
        load(path)
    save(made(), path)
    whole = path.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        whole[:300] + bytes([whole[300] ^ 1]) + whole[301:],
        b"not a zip file",
        b"",
    ):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="is not a readable score file"):
            load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="is not a readable score file"):
        load(path)
    path.unlink()
    os.mkfifo(path)  # nobody writes into it
    with pytest.raises(UserError, match="is not a readable score file"):
        load(path)


def test_unfinished_scores_that_cannot_be_read_are_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.partial.npz"
    os.mkfifo(path)
    assert not PartialScores(5, 3, "fingerprint", path).has(np.arange(1))
    assert "evaluating from the start" in capsys.readouterr().err


def test_a_file_of_the_version_before_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipeline.evaluation.scores.WITHOUT_PREPROCESSING", 1)
        save(made(), tmp_path / "one.npz")
    with pytest.raises(UserError, match="another format or version"):
        read_provenance(tmp_path / "one.npz")


def test_only_files_of_another_origins_weights_state_a_convention(tmp_path: Path) -> None:
    """Files of runs are those of version 2: read, continued and found again as before."""
    own = made()
    other = dataclasses.replace(own, provenance=provenance(preprocessing="fb: torch7-bicubic"))
    save(own, tmp_path / "own.npz")
    save(other, tmp_path / "other.npz")
    stated = {name: json.loads(str(np.load(tmp_path / f"{name}.npz")["provenance"])) for name in ("own", "other")}
    assert stated["own"]["version"] == 2 and "preprocessing" not in stated["own"]
    assert stated["other"]["version"] == 3 and stated["other"]["preprocessing"] == "fb: torch7-bicubic"
    read = [read_provenance(tmp_path / f"{name}.npz")[0] for name in ("own", "other")]
    assert read == [own.provenance, other.provenance]
    assert own.provenance.fingerprint != other.provenance.fingerprint
    fields = {key: value for key, value in dataclasses.asdict(own.provenance).items() if key != "preprocessing"}
    del fields["checkpoint"], fields["iteration"], fields["weights"]
    as_before = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert own.provenance.fingerprint == as_before


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(made(), tmp_path / "one.npz")
    before = (tmp_path / "one.npz").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(made(seed=1), tmp_path / "one.npz")
    assert [one.name for one in tmp_path.iterdir()] == ["one.npz"]
    assert (tmp_path / "one.npz").read_bytes() == before
