"""python -m pipeline.ensemble, as it is typed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import ensemble
from pipeline.evaluation.scores import Scores, load, save
from pipeline.run.config import Config, to_yaml
from pipeline.tracking import TrackingConfig, read_metrics
from pipeline.tracking.state import Delivered
from tests.pipeline.evaluation.nets_and_images import Run, provenance, random_softmax

IMAGES, CLASSES = 300, 12


@pytest.fixture
def run(run_command: Run) -> Run:
    return lambda *arguments: run_command(ensemble.main, *arguments)


def write_scores(path: Path, number: int, protocol: str, classes: int = CLASSES, **changes: Any) -> Path:
    random = np.random.default_rng(100 + number)
    labels = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
    table = random_softmax(random, IMAGES, classes).astype(np.float32)
    table[np.arange(IMAGES), labels] += random.random(IMAGES)
    table = (table / table.sum(axis=1, keepdims=True)).astype(np.float16)
    made = provenance(protocol, weights_sha256=f"{number}", **changes)
    save(Scores(scores=table, ids=np.arange(IMAGES), labels=labels, provenance=made), path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three run folders with scores under two protocols; one has an older file too."""
    folders = []
    for number, name in enumerate(("a", "b", "c")):
        config = Config(runs=str(tmp_path), name=name, tracking=TrackingConfig(mlflow=False))
        folder = config.run_folder
        (folder / "scores").mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        for protocol in ("center", "ten-crop"):
            path = write_scores(folder / f"scores/{protocol}-val-00000100.npz", number, protocol)
            path.with_suffix(".json").write_text(
                json.dumps({"images": 300, "seconds": 1.5, "world_size": 1, "device": "cpu", "threads": 1})
            )
        folders.append(folder)
    write_scores(folders[0] / "scores/center-val-00000050.npz", 9, "center", iteration=50)
    return folders


def figures(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])["protocols"]


def test_runs_are_averaged_under_every_protocol_they_share(runs: list[Path], run: Run) -> None:
    code, output, errors = run(*runs, "--json")
    assert code == 0, errors
    found = figures(output)
    assert list(found) == ["center", "ten-crop"]
    for protocol, result in found.items():
        members = [load(folder / f"scores/{protocol}-val-00000100.npz") for folder in runs]
        mean = np.mean([one.scores.astype(np.float64) for one in members], axis=0)
        wrong = 100 * np.mean(mean.argmax(axis=1) != members[0].labels)
        assert result["ensemble"]["top1_error"] == pytest.approx(wrong)
        assert [one["top1_error"] for one in result["members"]] == [one.errors(1) for one in members]
        low, high = result["ensemble"]["top1_interval"]
        assert low < wrong < high
        assert result["ensemble"]["images_per_second"] == pytest.approx(200 / 3)
        assert len(result["curve"]) == 3 and np.shape(result["overlap_top1"]) == (3, 3)
        assert f"{wrong:.2f}" in output and "ensemble of 3" in output


def test_the_ensemble_is_a_run_of_its_own(runs: list[Path], run: Run) -> None:
    found = figures(run(*runs, "--json")[1])
    folder = runs[0].parent / "ensemble-a-b-c"
    records = {record.kind: record.values for record in read_metrics(folder / "metrics.jsonl")}
    assert set(records) == {"center-val", "ten-crop-val"}
    assert records["ten-crop-val"]["top1_error"] == found["ten-crop"]["ensemble"]["top1_error"]
    assert json.loads((folder / "ensemble.json").read_text())["protocols"] == found
    told = (folder / "tracking.json").read_text()
    assert all(f'"member.{i + 1}": "{name}"' in told.replace('":"', '": "') for i, name in enumerate("abc"))


def test_score_files_can_be_members(runs: list[Path], run: Run) -> None:
    files = [folder / "scores/center-val-00000100.npz" for folder in runs]
    by_file = figures(run(*files, "--json", "--no-tracking")[1])
    assert list(by_file) == ["center"]
    by_run = figures(run(*runs, "--protocol", "center", "--json", "--no-tracking")[1])
    assert by_file["center"]["ensemble"] == by_run["center"]["ensemble"]
    assert not (runs[0].parent / "ensemble-a-b-c").exists()


def test_mlflow_run_ids_can_be_members(runs: list[Path], run: Run) -> None:
    ids = [f"{number:032x}" for number in range(3)]
    for folder, one in zip(runs, ids, strict=True):
        Delivered(run_id=one).write(folder)
    by_id = figures(run(*ids, "--runs", runs[0].parent, "--json")[1])
    assert by_id == figures(run(*runs, "--json", "--no-tracking")[1])
    told = (runs[0].parent / "ensemble-a-b-c/tracking.json").read_text()
    assert all(f"{name} ({one})" in told for name, one in zip("abc", ids, strict=True)), "the run links its members"


def test_search_keeps_the_best(runs: list[Path], run: Run) -> None:
    code, output, _ = run(*runs, "--search", "2", "--json", "--no-tracking", "--protocol", "center")
    assert code == 0
    chosen = [one["name"] for one in figures(output)["center"]["members"]]
    pairs = {}
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        members = [load(runs["abc".index(name)] / "scores/center-val-00000100.npz") for name in pair]
        mean = np.mean([one.scores.astype(np.float64) for one in members], axis=0)
        pairs[pair] = (mean.argmax(axis=1) != members[0].labels).mean()
    assert pairs[tuple(chosen)] == min(pairs.values()) and len(set(pairs.values())) > 1
    assert "flatters" in output


def test_mistakes_get_one_sentence(runs: list[Path], run: Run, tmp_path: Path) -> None:
    a, b, _ = runs
    (tmp_path / "nothing").mkdir()
    bare = tmp_path / "bare"
    (bare / "scores").mkdir(parents=True)
    (bare / "config.yaml").write_text((a / "config.yaml").read_text())
    center = a / "scores/center-val-00000100.npz"
    one = load(center)
    wide = write_scores(tmp_path / "wide.npz", 20, "center", classes=CLASSES + 1)
    split = write_scores(tmp_path / "split.npz", 21, "center", split="test")
    relabelled, unlabelled, spoiled = tmp_path / "relabelled.npz", tmp_path / "unlabelled.npz", tmp_path / "spoiled.npz"
    other = dataclasses.replace(one, provenance=provenance(weights_sha256="x"))
    save(dataclasses.replace(other, labels=np.roll(one.labels, 1)), relabelled)
    save(dataclasses.replace(other, labels=np.full(IMAGES, -1)), unlabelled)
    unlabelled_too = tmp_path / "unlabelled-too.npz"
    save(dataclasses.replace(one, labels=np.full(IMAGES, -1)), unlabelled_too)
    nan = one.scores.copy()
    nan[3] = np.nan
    save(dataclasses.replace(other, scores=nan), spoiled)
    cases: list[tuple[list[object], str]] = [
        ([a], "needs at least two members"),
        ([a, tmp_path / "absent"], "the member .*absent does not exist"),
        ([a, tmp_path / "nothing"], "is not a run folder"),
        ([a, bare], "has no scores of the split 'val'"),
        ([a, a], "a is given twice"),
        ([a, center], "are the same net"),
        ([a, b / "scores/ten-crop-val-00000100.npz", center], "no protocol in common"),
        ([a, b, "--protocol", ","], "no protocol was named: give --protocol with center"),
        ([a, b, "--protocol", "multi-crop"], "there is no protocol 'multi-crop'"),
        ([center, wide], "their classes differ"),
        ([center, split], "their split differ"),
        ([center, relabelled], "the labels of their images differ"),
        ([unlabelled, unlabelled_too], "have no labels"),
        ([center, spoiled], "row 3 of .* is not a softmax"),
        ([a, b, "--search", "3"], "--search must be 2 to 2"),
        ([a, b, "--name", "a"], "is the run folder of a training"),
        ([a, "0123456789abcdef0123456789abcdef", "--runs", tmp_path], "no run folder in .* is the MLflow run"),
    ]
    for arguments, sentence in cases:
        code, _, errors = run(*arguments)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in errors, (arguments, errors)
        assert re.search(sentence, said[0]), (sentence, said[0])


def test_other_weights_are_other_metrics_and_another_run(runs: list[Path], run: Run) -> None:
    """Of the same members: neither their figures nor those of chosen members may take the first ensemble's place."""
    for number, folder in enumerate(runs):
        for protocol in ("center", "ten-crop"):
            path = folder / f"scores/{protocol}-val-00000100-recomputed-bn.npz"
            write_scores(path, 10 + number, protocol, weights="recomputed-bn")
    names = {"center-val-recomputed-bn", "ten-crop-val-recomputed-bn"}
    for options, name, kinds in (
        ([], "ensemble-a-b-c", {"center-val", "ten-crop-val"}),
        (["--weights", "recomputed-bn"], "ensemble-a-b-c--recomputed-bn", names),
        (["--protocol", "center"], "ensemble-a-b-c--center", {"center-val"}),
        (["--protocol", "center", "--search", 2], "ensemble-a-b-c--center--best2-by-top-1", {"center-val"}),
    ):
        code, _, errors = run(*runs, *options)
        assert code == 0, errors
        folder = runs[0].parent / name
        assert {record.kind for record in read_metrics(folder / "metrics.jsonl")} == kinds
    assert len(list(runs[0].parent.glob("ensemble-*"))) == 4


def test_members_of_one_name_are_called_as_they_were_given(runs: list[Path], run: Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0], tmp_path / "other/a"))
    for protocol in ("center", "ten-crop"):
        write_scores(other / f"scores/{protocol}-val-00000100.npz", 30, protocol)
    code, output, errors = run(runs[0], other, runs[1], "--json", "--no-tracking")
    assert code == 0, errors
    assert [one["name"] for one in figures(output)["center"]["members"]] == [str(runs[0]), str(other), "b"]
    code, _, errors = run(runs[0], f"{runs[1]}/../a")
    assert code == 2 and "a is given twice" in errors


def test_scores_of_an_older_version_do_not_hide_the_newest(runs: list[Path], run: Run) -> None:
    (runs[0] / "scores/center-val-00000050.npz").write_bytes(b"of another version")
    assert run(*runs, "--no-tracking")[0] == 0


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "-x", "", "two words"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(runs: list[Path], run: Run, name: str) -> None:
    code, _, errors = run(*runs, f"--name={name}")
    assert code == 2 and f"--name '{name}' cannot name a run folder" in errors and "Traceback" not in errors
