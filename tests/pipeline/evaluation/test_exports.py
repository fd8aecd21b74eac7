"""A run's exported weights are tested as the run is: the reference is the score file that the run itself gets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import export
from pipeline.data.dataset import Dataset
from pipeline.evaluation.exports import ExportedNet, exported_net, mean_sha256
from pipeline.evaluation.scores import Scores, load
from tests.images import encode, photograph
from tests.pipeline.data.small_datasets import statistics_of_size, write_dataset
from tests.pipeline.evaluation.nets_and_images import Run, changed_copy, figures, write_run

# Each of these was scored otherwise, without a word, when exports did not say what their net needs.
RUNS: dict[str, dict[str, Any]] = {
    "CIFAR net, resized": {"arch": "resnet8"},
    "ImageNet net, small": {"arch": "resnet18", "sizes": (72, 64)},
    "other stride": {"arch": "resnet50", "sizes": (40, 32), "stride": "v1.5"},
    "mean colour": {"arch": "resnet8", "subtract": "mean-colour"},
}


def made(runs: Path, dataset: Dataset, **changes: Any) -> tuple[Path, Path]:
    """A run folder, and its exported weights."""
    run = write_run(runs, "one", dataset, **changes)
    out = runs.parent / "exported"
    assert export.main([str(run), "--out", str(out), "--format", "safetensors"]) == 0
    return run, out / "model.safetensors"


def scores_of(run_evaluate: Run, *words: object) -> Scores:
    code, output, errors = run_evaluate(*words, "--split", "train", "--json")
    assert code == 0, errors
    return load(Path(figures(output)["results"][0]["scores"]))


def assert_same(found: Scores, expected: Scores) -> None:
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.scores.std(axis=0).max() > 0.01, "all images get the same scores: nothing was compared"


@pytest.mark.parametrize("kind", RUNS)
def test_exported_weights_get_the_scores_of_their_run(
    tmp_path: Path, few_of_ten_classes: Dataset, run_evaluate: Run, kind: str
) -> None:
    run, file = made(tmp_path / "runs", few_of_ten_classes, **RUNS[kind])
    own = scores_of(run_evaluate, run)
    theirs = scores_of(run_evaluate, "--weights", file, "--data", few_of_ten_classes.folder, "--preprocessing", "ours")
    assert_same(theirs, own)
    assert theirs.provenance.fingerprint == own.provenance.fingerprint
    assert theirs.path == file.with_name("model-center-train.npz"), "beside the file"


def test_on_another_dataset_the_mean_is_that_of_the_export(
    tmp_path: Path, few_of_ten_classes: Dataset, run_evaluate: Run
) -> None:
    images = [encode(photograph(number, 40, 48)) for number in range(20)]
    darker = replace(statistics_of_size(32), mean_image=statistics_of_size(32).mean_image - 40)
    other = write_dataset(tmp_path / "other", images, [number % 10 for number in range(20)], statistics=darker)
    run, file = made(tmp_path / "runs", few_of_ten_classes)
    words = ["--weights", file, "--data", other.folder]
    assert_same(scores_of(run_evaluate, *words), scores_of(run_evaluate, run, "--data", other.folder))
    for damage in (lambda mean: np.save(mean, np.zeros((32, 32, 3), np.float32)), lambda mean: mean.unlink()):
        damage(file.with_name("mean.npy"))
        code, _, errors = run_evaluate(*words, "--split", "train", "--again")
        assert code == 2 and re.search(r"is neither that of the dataset .* nor in .*mean\.npy: put the mean", errors)


def test_the_metadata_say_what_the_weights_do_not_show(tmp_path: Path, few_of_ten_classes: Dataset) -> None:
    _, file = made(tmp_path / "runs", few_of_ten_classes, **RUNS["ImageNet net, small"])
    with safe_open(file, "np") as opened:
        found = opened.metadata()
    sizes = {"arch": "resnet18", "stride": "paper", "shortcut": "default", "short_side": "72", "crop": "64"}
    assert sizes.items() <= found.items() and found["subtract"] == "mean-image"
    assert found["mean_sha256"] == mean_sha256(np.load(file.with_name("mean.npy")))
    assert found["dataset_sha256"] == few_of_ten_classes.sha256
    net = exported_net(file)
    assert net is not None and net.metadata().items() <= found.items()
    assert net.wnids == tuple(one.wnid for one in few_of_ten_classes.manifest.classes)


def test_names_in_any_bytes_come_back() -> None:
    """Class folders need not be UTF-8: the metadata, which must be, hold them as JSON writes them."""
    net = ExportedNet(
        arch="resnet8", stride="paper", shortcut="default", short_side=36, crop=32, subtract="mean-image",
        mean_sha256="0", dataset_sha256="0", classes=("a\udcff",), wnids=("\udcff", "ö"),
    )  # fmt: skip
    assert net.metadata()["wnids"].encode() == b'["\\udcff", "\xc3\xb6"]'


def test_what_contradicts_an_export_is_refused(tmp_path: Path, few_of_ten_classes: Dataset, run_evaluate: Run) -> None:
    _, file = made(tmp_path / "runs", few_of_ten_classes)
    data = ["--data", few_of_ten_classes.folder, "--split", "train"]
    renamed = changed_copy(
        few_of_ten_classes, tmp_path / "renamed", lambda manifest: manifest["classes"][3].update(wnid="another")
    )
    state, metadata = load_file(file), {"mean_sha256": "0", "arch": "resnet8"}
    save_file(state, tmp_path / "cut.safetensors", metadata)
    cases: list[tuple[list[object], str]] = [
        ([file, *data, "--arch", "resnet14"], "is an export that states --arch resnet8, and not resnet14"),
        ([file, *data, "--short-side", 32], "states --short-side 36, and not 32: leave out --short-side"),
        ([file, *data, "--crop", 28], "states --crop 32, and not 28"),
        ([file, *data, "--stride", "v1.5"], "states --stride paper, and not v1.5"),
        ([file, *data, "--preprocessing", "torchvision"], "states --preprocessing ours, and not torchvision"),
        ([file, *data, "--data", renamed.folder], "class 3 of the dataset .* is another, but model was trained with"),
        ([tmp_path / "cut.safetensors", *data], "the metadata of .*cut.safetensors"),
    ]
    for words, sentence in cases:
        code, _, errors = run_evaluate("--weights", *words)
        assert code == 2 and re.search(sentence, errors) and "Traceback" not in errors, (sentence, errors)
    assert not list(file.parent.glob("*.npz"))
    agreeing = ["--arch", "resnet8", "--short-side", 36, "--crop", 32, "--stride", "paper"]
    assert scores_of(run_evaluate, "--weights", file, *data, *agreeing).path == file.with_name("model-center-train.npz")


def test_without_metadata_the_options_must_say_it(
    tmp_path: Path, few_of_ten_classes: Dataset, run_evaluate: Run
) -> None:
    _, file = made(tmp_path / "runs", few_of_ten_classes)
    save_file(load_file(file), tmp_path / "older.safetensors", {"classes": "[]"})
    torch.save({"fc.bias": torch.zeros(1)}, tmp_path / "net.pth")
    ours = ["--data", few_of_ten_classes.folder, "--preprocessing", "ours"]
    cases: list[tuple[list[object], str]] = [
        (["older.safetensors", "--arch", "resnet8"], "does not say --short-side and --crop of its net"),
        (["net.pth", "--arch", "resnet18", "--short-side", 72], "does not say --crop of its net"),
        (["net.pth", "--arch", "resnet50"], "does not say --short-side, --crop and --stride of its net"),
    ]
    for (name, *words), sentence in cases:
        code, _, errors = run_evaluate("--weights", tmp_path / str(name), *words, *ours)
        assert code == 2 and sentence in errors, (sentence, errors)


def test_where_nothing_can_be_written_beside_the_file(
    tmp_path: Path, few_of_ten_classes: Dataset, run_evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores go into the working directory. The kernel's answer is pretended, because root may write everywhere."""
    _, file = made(tmp_path / "runs", few_of_ten_classes)
    monkeypatch.setattr("pipeline.evaluation.score_files.os.access", lambda folder, mode: folder != file.parent)
    monkeypatch.chdir(tmp_path)
    scores = scores_of(run_evaluate, "--weights", file, "--data", few_of_ten_classes.folder)
    assert scores.path == Path("model-center-train.npz")
