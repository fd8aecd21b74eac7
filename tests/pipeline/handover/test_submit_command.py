"""python -m pipeline.submit: the file is what ILSVRC asks for, and scores what an independent reading says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import submit
from pipeline.base import command
from pipeline.data.dataset import ClassInfo, Dataset, Manifest, ShardInfo, SplitInfo
from pipeline.data.sample_table import sample_dtype
from pipeline.evaluation.scores import Scores, load, save
from pipeline.handover import submission
from tests.pipeline.data.small_datasets import save_table
from tests.pipeline.evaluation.nets_and_images import Run, provenance, random_softmax

CLASSES = 30


@pytest.fixture
def run(run_command: Run) -> Run:
    return lambda *arguments: run_command(submit.main, *arguments)


def ilsvrc_ids() -> list[int]:
    """Ids 1..30 in another order than the labels', as the development kit's are."""
    return [int(one) + 1 for one in np.random.default_rng(2).permutation(CLASSES)]


def write_dataset(folder: Path, images: int, split: str = "val", names: Callable[[int], str] | None = None) -> Dataset:
    """A dataset folder's tables without its images: all that a submission is made of."""
    folder.mkdir(parents=True)
    names = names or (lambda number: f"ILSVRC2012_{split}_{number + 1:08d}")
    table = np.zeros(images, sample_dtype(40))
    table["key"] = [names(number).encode() for number in range(images)]
    table["label"] = labels(images) if split == "val" else -1
    table["offset"], table["height"], table["width"] = 512, 1, 1
    digest = save_table(folder / f"{split}.samples.npy", table)
    shard = ShardInfo(file=f"{split}/missing.tar", samples=images, bytes=1024, sha256="", index_sha256="")
    info = SplitInfo(samples=images, table=f"{split}.samples.npy", table_sha256=digest, shards=(shard,))
    classes = tuple(ClassInfo(wnid=f"n{i:08d}", ilsvrc2012_id=one) for i, one in enumerate(ilsvrc_ids()))
    (folder / "manifest.json").write_text(Manifest(seed=0, classes=classes, splits={split: info}).to_json())
    return Dataset(folder)


def labels(images: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, CLASSES, images)


def write_scores(path: Path, dataset: Dataset, number: int, split: str = "val", images: int = 200) -> Path:
    made = provenance(weights_sha256=str(number), split=split, dataset_sha256=dataset.sha256)
    table = random_softmax(np.random.default_rng(number), images, CLASSES)
    truth = dataset.split(split).labels
    save(Scores(scores=table, ids=np.arange(images), labels=truth, provenance=made), path)
    return path


def test_val_is_written_and_scored_by_an_independent_reading(tmp_path: Path, run: Run) -> None:
    dataset = write_dataset(tmp_path / "data", 200)
    members = [write_scores(tmp_path / f"{number}.npz", dataset, number) for number in (1, 2)]
    truth = tmp_path / "ground_truth.txt"
    truth.write_text("".join(f"{ilsvrc_ids()[label]}\n" for label in labels(200)))
    common = ("--data", dataset.folder, "--split", "val", "--lines", 200, "--json")
    code, output, errors = run(*members, *common, "--out", tmp_path / "out.txt", "--ground-truth", truth)
    assert code == 0, errors
    mean = np.mean([load(one).scores.astype(np.float64) for one in members], axis=0)
    lines = (tmp_path / "out.txt").read_text().splitlines()
    top1 = top5 = 0
    for line, row, label in zip(lines, mean, labels(200), strict=True):
        best = sorted(range(CLASSES), key=lambda c, row=row: (-row[c], c))[:5]  # type: ignore[misc]
        assert line == " ".join(str(ilsvrc_ids()[c]) for c in best)
        top1, top5 = top1 + (best[0] != label), top5 + (label not in best)
    figures = json.loads(output.splitlines()[-1])
    assert (figures["top1_error"], figures["top5_error"]) == (top1 / 2, top5 / 2)
    assert 0 < top5 < top1 < 200
    again = run(*members, *common, "--out", tmp_path / "again.txt")[1]
    assert json.loads(again.splitlines()[-1])["top1_error"] == top1 / 2, "the dataset's labels say the same"


def test_the_test_set_is_written_without_labels(tmp_path: Path, run: Run) -> None:
    dataset = write_dataset(tmp_path / "data", 200, "test")
    member = write_scores(tmp_path / "1.npz", dataset, 1, "test")
    code, output, errors = run(
        member, "--data", dataset.folder, "--lines", 200, "--json", "--out", tmp_path / "out.txt"
    )
    assert code == 0, errors
    assert json.loads(output.splitlines()[-1])["top1_error"] is None
    rows = [[int(word) for word in line.split()] for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(rows) == 200 and all(len(set(row)) == 5 and min(row) >= 1 and max(row) <= CLASSES for row in rows)


def test_mistakes_get_one_sentence(tmp_path: Path, run: Run) -> None:
    dataset = write_dataset(tmp_path / "data", 200)
    member = write_scores(tmp_path / "1.npz", dataset, 1)
    other = write_dataset(tmp_path / "other", 201)
    loose = write_dataset(tmp_path / "loose", 200, names=lambda number: f"cat_{number:04d}")
    of_loose = write_scores(tmp_path / "loose.npz", loose, 1)
    shuffled = write_dataset(tmp_path / "shuffled", 200, names=lambda number: f"ILSVRC2012_val_{200 - number:08d}")
    of_shuffled = write_scores(tmp_path / "shuffled.npz", shuffled, 1)
    without = tmp_path / "without"
    write_dataset(without, 200)
    text = (without / "manifest.json").read_text()
    (without / "manifest.json").write_text(text.replace(f'"ilsvrc2012_id": {ilsvrc_ids()[3]}', '"ilsvrc2012_id": null'))
    of_without = write_scores(tmp_path / "without.npz", Dataset(without), 1)
    truth = tmp_path / "truth.txt"
    truth.write_text("1\n" * 199)
    common = ["--out", tmp_path / "out.txt", "--lines", 200]
    cases: list[tuple[list[object], str]] = [
        (
            [member, "--data", dataset.folder, "--out", tmp_path / "out.txt"],
            "200 images, but a submission has 50,000 lines",
        ),
        ([member, *common], "give it with --data"),
        ([member, "--data", other.folder, *common], "the scores are not of the dataset"),
        ([of_loose, "--data", loose.folder, *common], "'cat_0000' .* is no image of ILSVRC"),
        ([of_shuffled, "--data", shuffled.folder, *common], "not in file-name order"),
        ([of_without, "--data", without, *common], "does not know the ILSVRC2012_ID"),
        ([member, "--data", dataset.folder, *common, "--ground-truth", truth], "has 199 ids for 200 images"),
        ([tmp_path / "absent.npz", *common], "absent.npz does not exist"),
        ([member], "required: --out"),
    ]
    for arguments, sentence in cases:
        code, _, errors = run(*arguments)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in errors, (arguments, errors)
        assert re.search(sentence, said[0]), (sentence, said[0])


@pytest.mark.parametrize("bad", ["1 2 3 4 4", "1 2 3 4 31", "1 2 3 4 5 6", "", "1 2 x"])
def test_a_file_that_is_no_submission_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "out.txt").write_text(f"1 2 3 4 5\n{bad}\n7 8\n")
    with pytest.raises(command.UserError, match="line 2 of"):
        submission.read(tmp_path / "out.txt", 3, set(range(1, CLASSES + 1)))
