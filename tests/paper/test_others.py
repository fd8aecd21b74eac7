"""Runs that belong to no experiment: which they are, their errors against NumPy, how they are counted, shown and recorded."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from paper import report
from paper.spec import RunSpec
from pipeline.base.checkout import CONFIGS
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.evaluation import scores
from pipeline.run.options import load
from pipeline.run.starting_point import StartingPoint
from tests.paper.run_folders import DATASET, IMAGES, Report, rows_of, spec_of, write_run


def of_demo(arch: str = "resnet8", seed: int = 0, variant: str | None = None) -> RunSpec:
    return RunSpec(config=CONFIGS / "demo.yaml", arch=arch, seed=seed, variant=variant)


def write_ensemble(runs: Path, *members: str) -> Path:
    """As pipeline.ensemble leaves it, but for its errors, which the report counts anew."""
    folder = runs / f"ensemble-{len(members)}"
    folder.mkdir()
    entries = [{"name": name, "scores": str(runs / name / "scores/center-val-00000400.npz")} for name in members]
    (folder / "ensemble.json").write_text(json.dumps({"protocols": {"center": {"members": entries}}}))
    return folder


def others_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By the name of the run."""
    return {Path(run["run"]).name: run for group in found["other_runs"]["datasets"] for run in group["runs"]}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """Two tested runs, one that was interrupted, and the ensemble of the two."""
    runs = tmp_path / "runs"
    write_run(of_demo("resnet8"), runs, wrong=900)
    write_run(of_demo("resnet14"), runs, wrong=700)
    write_run(of_demo("resnet20", variant="longer"), runs, iteration=200)
    write_ensemble(runs, "resnet8-seed0", "resnet14-seed0")
    return runs


def test_errors_of_runs_and_ensembles_against_numpy(demo: Path, make: Report) -> None:
    found = others_of(make(demo))
    tables = [
        scores.load(demo / name / "scores/center-val-00000400.npz") for name in ("resnet8-seed0", "resnet14-seed0")
    ]
    average = np.mean([table.scores.astype(np.float64) for table in tables], axis=0)
    wanted = {"resnet8-seed0": 9.0, "resnet14-seed0": 7.0}
    wanted["ensemble-2"] = 100 * float((average.argmax(axis=1) != np.arange(IMAGES) % 10).mean())
    assert 7.0 < wanted["ensemble-2"] < 9.0
    for name, error in wanted.items():
        (test,) = found[name]["errors"]
        assert (test["protocol"], test["split"], test["images"]) == ("center", "val", IMAGES)
        assert test["top1_error"] == pytest.approx(error) and found[name]["state"] == "finished"
        low, high = test["intervals"]["top1_error"]
        assert low < error < high
    stopped = found["resnet20-seed0-longer"]
    assert stopped["state"] == "interrupted (iteration 200 of 400)" and stopped["errors"] == []
    assert found["ensemble-2"]["members"] == ["resnet8-seed0", "resnet14-seed0"]


def test_the_page_leads_from_numbers_to_cards_and_folders(demo: Path, make: Report, tmp_path: Path) -> None:
    """Other runs stand before the tables of which nothing has been run; trainings by their last val error."""
    make(demo)
    page = (tmp_path / "page/report.html").read_text()
    assert page.index('<section id="others">') < page.index('<section id="table6">')
    part = page[page.index('<section id="others">') :]
    part = part[: part.index("</section>")]
    leads = re.findall(r'<a href="#(run-.+?)">', part)
    assert (
        leads[:2] == ["run-resnet14-seed0", "run-resnet8-seed0"] and leads[-1] == "run-ensemble-2" and len(leads) == 4
    )
    assert all(page.count(f'id="{lead}"') == 1 for lead in leads)
    assert "interrupted (iteration 200 of 400)" in part and "learning rate 0.1 (steps), float32, seed 0" in page
    assert part.count("<svg xmlns") == 1 and all(
        (demo / name).exists() for name in re.findall(r'href="\.\./runs/(.+?)"', page)
    )


@pytest.mark.parametrize("fault", ["older checkpoint", "other data", "trial", "damaged", "no longer finished"])
def test_only_tests_of_the_final_checkpoint_count(demo: Path, make: Report, fault: str) -> None:
    run = demo / "resnet8-seed0"
    path = run / "scores/center-val-00000400.npz"
    table = scores.load(path)
    match fault:
        case "older checkpoint":
            made = replace(table.provenance, checkpoint="00000300-0123456789abcdef.pt")
            scores.save(replace(table, provenance=made), path)
        case "other data":
            made = replace(table.provenance, dataset_sha256="e" * 64)
            scores.save(replace(table, provenance=made), path)
        case "trial":
            path.rename(path.with_name("center-val-00000400-bf16.npz"))
        case "damaged":
            path.write_bytes(path.read_bytes()[:1000])
        case "no longer finished":
            next(run.glob("checkpoints/*.pt")).unlink()
    found = others_of(make(demo))
    assert found["resnet8-seed0"]["errors"] == []
    assert found["resnet14-seed0"]["errors"], "the others' errors stay"
    if fault in ("older checkpoint", "damaged", "trial", "no longer finished"):
        assert found["ensemble-2"]["errors"] == [] and found["ensemble-2"]["notes"]


def test_what_a_run_logged_stands_in_for_a_test(digits: Path, make: Report, tmp_path: Path) -> None:
    folder = write_run(of_demo(), tmp_path / "runs", tested=False)
    config, facts = folder / "config.yaml", json.loads((folder / "run.json").read_text())
    config.write_text(config.read_text().replace("data: demo/dataset", f"data: {digits}"))
    (folder / "run.json").write_text(json.dumps({**facts, "dataset_sha256": Dataset(digits).sha256}))
    found = make(tmp_path / "runs")
    (test,) = others_of(found)["resnet8-seed0"]["errors"]
    assert (test["protocol"], test["top1_error"], test["images"]) == ("val, in training", 8.0, 355)
    (group,) = found["other_runs"]["datasets"]
    assert (group["name"], group["images"]) == ("digits (folder dataset)", {"train": 1442, "val": 355})
    assert group["classes"] == list(map(str, range(10)))


def test_every_folder_is_counted(demo: Path, make: Report) -> None:
    """What belongs to an experiment that is not on the page is no other run; hidden folders and MLflow's are nothing."""
    write_run(spec_of("resnet20-seed0"), demo)
    write_run(spec_of("plain20-seed0"), demo, scale=0.25)
    write_run(of_demo("resnet50"), demo, tested=False)  # the name of a run of table2 to 5
    for name in ("notes", "resnet56-seed0", ".hidden", "mlartifacts", report.RESULT_RUN):
        (demo / name).mkdir()
    found = make(demo, experiments="table6")
    others = found["other_runs"]
    assert set(others_of(found)) == {
        "resnet8-seed0", "resnet14-seed0", "resnet20-seed0-longer", "ensemble-2", "resnet50-seed0"
    }  # fmt: skip
    assert others["of_experiments_not_shown"] == {"fig1": [str(demo / "plain20-seed0-scale0.25")]}
    assert others["no_runs"] == [str(demo / "notes"), str(demo / "resnet56-seed0")]
    assert others["sentences"] == [
        "5 runs belong to no experiment, 1 of them an ensemble.",
        "1 run belongs to the experiment fig1, which is not on this page: plain20-seed0-scale0.25.",
        "2 folders are no runs: notes, resnet56-seed0.",
    ]
    assert others_of(found)["resnet50-seed0"]["notes"] == []
    (note,) = others_of(make(demo, experiments="table3"))["resnet50-seed0"]["notes"]
    assert note == "a run of an experiment has this name, and another config or another copy"


def test_a_fine_tuned_run_is_none_of_the_papers(make: Report, tmp_path: Path) -> None:
    """Not even under the name of one: its weights began elsewhere, and the page says where."""
    folder = write_run(spec_of("resnet20-seed0"), tmp_path)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values |= {"init": "/home/me/runs/pretrained", "init_sha256": "ab" * 32}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    start = StartingPoint(
        init="/home/me/runs/pretrained", file="/home/me/runs/pretrained/checkpoints/x.pt", weights="ema", iteration=7,
        sha256="cd" * 32, taken=5, of=7, left_out=dict.fromkeys(("fc.weight", "fc.bias"), "9 classes there, 10 here"),
    )  # fmt: skip
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "starts_from": start.as_fact()}))
    found = make(tmp_path, experiments="table6")
    row = rows_of(found)["ResNet-20"]
    assert "init: /home/me/runs/pretrained (SHA-256 abababababab...) -> random weights" in json.dumps(row)
    note, other = others_of(found)["resnet20-seed0"]["notes"]
    assert note == (
        "starts from pretrained (iteration 7, ema weights, SHA-256 cdcdcdcdcdcdcdcd...): 5 of 7 tensors; "
        "at random: fc.weight, fc.bias (9 classes there, 10 here)"
    )
    assert other == "a run of an experiment has this name, and another config or another copy"


def test_a_damaged_run_is_one_sentence(demo: Path, make: Report) -> None:
    (demo / "resnet8-seed0/config.yaml").write_text("arch: [")
    (demo / "ensemble-2/ensemble.json").write_text("{}")
    found = others_of(make(demo))
    assert found["resnet8-seed0"]["state"] == found["ensemble-2"]["state"] == "damaged"
    assert "is not YAML" in found["resnet8-seed0"]["notes"][0] and "average again" in found["ensemble-2"]["notes"][0]
    assert found["resnet14-seed0"]["errors"]


class Elements(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def write_named(digits: Path, folder: Path, evil: str) -> tuple[Path, Path]:
    """Runs in `folder` and an experiment with the text `evil` in the names of run folders, datasets, classes and members, and
    of the experiment's row and title: (the folder of the run folders, the experiment).
    """
    data = Path(shutil.copytree(digits, folder / f"data {evil}"))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["classes"][3]["name"] = f"class {evil}"
    (data / "manifest.json").write_text(json.dumps(manifest))
    runs = folder / "runs"
    for name in ("resnet8-seed0", "resnet14-seed0"):
        run = write_run(of_demo(name.partition("-")[0]), runs)
        facts = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**facts, "dataset_sha256": Dataset(data).sha256}))
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("data: demo/dataset", f"data: {json.dumps(str(data))}"))
        run.rename(runs / f"{name} {evil}")
    write_ensemble(runs, f"resnet8-seed0 {evil}", f"resnet14-seed0 {evil}")
    experiment = folder / "evil.yaml"
    title = json.dumps(f"title {evil}")
    experiment.write_text(
        f"title: {title}\nplace: Fig. 0\nconfig: demo.yaml\nmeasure: curve\nrows:\n"
        f"  - {{label: {json.dumps(f'label {evil}')}, nets: [{{arch: resnet20}}]}}\n"
    )
    write_run(of_demo("resnet20"), runs, tested=False)
    return runs, experiment


def test_names_are_text_and_never_markup(
    digits: Path, make: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of run folders, datasets, classes, members and of an experiment's rows and titles."""
    monkeypatch.chdir(tmp_path)  # the config of the demo names demo/dataset, which a checkout may have
    evil = "\"><img src=x onerror=alert(1)> $x$ & 'b"
    runs, experiment = write_named(digits, tmp_path, evil)
    found = make(runs, experiments=str(experiment))
    assert len(others_of(found)) == 3
    page = (tmp_path / "page/report.html").read_text()
    elements = Elements(page)
    assert not [tag for tag, _ in elements.found if tag in ("img", "script", "b")]
    assert not [values for _, values in elements.found if "onerror" in values]
    for kind in ("resnet8-seed0", "resnet14-seed0", "class", "label", "title"):
        assert f"{kind} {evil}" in elements.text
    panels = re.findall(r"<svg xmlns.*?</svg>", page, re.DOTALL)
    assert len(panels) == 2
    for panel in panels:
        texts = "".join(ElementTree.fromstring(panel).itertext())
        assert "$x$" in texts, "no name is a formula"
    links = {
        values["href"][1:] for tag, values in elements.found if tag == "a" and (values["href"] or "").startswith("#")
    }
    assert links <= {values["id"] for _, values in elements.found if "id" in values}


def test_two_runs_of_one_name_are_both_shown(demo: Path, make: Report, tmp_path: Path) -> None:
    second = tmp_path / "second"
    write_run(of_demo("resnet8"), second, wrong=1000)
    found = make(demo, second)
    errors = [
        run["errors"][0]["top1_error"]
        for group in found["other_runs"]["datasets"]
        for run in group["runs"]
        if Path(run["run"]).name == "resnet8-seed0"
    ]
    assert errors == [9.0, 10.0]
    page = (tmp_path / "page/report.html").read_text()
    assert page.count('id="run-resnet8-seed0"') == page.count('id="run-resnet8-seed0.2"') == 1
    with pytest.raises(UserError, match="would have one record"):
        make(demo, second, "--records", tmp_path / "records")


def test_many_runs_stay_one_small_page(make: Report, tmp_path: Path) -> None:
    """Each has its row, its card and a small curve; the figure has the best twelve, in panels of six."""
    runs = tmp_path / "runs"
    for seed in range(15):
        write_run(of_demo(seed=seed), runs, wrong=500 + seed, tested=False)
    found = make(runs)
    assert len(others_of(found)) == 15
    page = (tmp_path / "page/report.html").read_text()
    figures = page[page.index("<figure>") : page.index("</figure>")]
    drawn = re.findall(r">resnet8-seed(\d+)</text>", figures)
    assert sorted(map(int, drawn)) == list(range(12))
    assert figures.count("<svg") == 2 and "the 12 of 15 runs with the lowest val errors" in figures
    rest = len(page) - len(figures)
    assert page.count('<article class="run"') == 15 and len(figures) < 12 * 20_000 and rest < 60_000 + 15 * 3_000


def test_records_of_other_runs_and_ensembles(demo: Path, make: Report, tmp_path: Path) -> None:
    records = tmp_path / "page/records"
    found = make(demo, "--records", records)
    assert {path.name for path in records.iterdir()} == set(others_of(found))
    recorded = json.loads((records / "ensemble-2/ensemble.json").read_text())
    first, second = recorded["protocols"]["center"]["members"]
    assert first["scores"] == "resnet8-seed0/scores/center-val-00000400.npz" and second["name"] == "resnet14-seed0"
    assert load(records / "resnet8-seed0/config.yaml").data == "dataset"
    page = (tmp_path / "page/report.html").read_text()
    assert 'href="records/ensemble-2/ensemble.json"' in page and "/runs/" not in page
    assert json.loads((records / "resnet8-seed0/run.json").read_text())["dataset_sha256"] == DATASET
