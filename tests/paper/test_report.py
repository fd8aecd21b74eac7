"""python -m pipeline.report: its numbers against NumPy and SciPy, what is not there, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from mlflow import MlflowClient

from paper import report
from paper.evidence import Measured
from paper.logged import wilson_interval
from paper.reading import find, names
from paper.rows import _comparable
from paper.runs import deviations, read_facts
from paper.spec import resolve
from pipeline.base.command import UserError
from pipeline.data.dataset import Dataset
from pipeline.run.config import to_yaml
from pipeline.run.options import load
from tests.paper.run_folders import WRONG, Report, rows_of, spec_of, write_run
from tests.patience import limit
from tests.pipeline.tracking.mlflow_store import only_run, store_uri


def test_table_6_against_numpy_and_scipy(made: Path, make: Report, tmp_path: Path) -> None:
    from scipy import stats  # here: it takes seconds, and every worker imports this module

    found = make(made)
    rows = rows_of(found)
    (line,) = rows["ResNet-20"]["lines"]
    assert (line["ours"], line["paper"]) == (8.69, 8.75) and line["difference"] == pytest.approx(-0.06)
    exact = stats.binom.ppf([0.025, 0.975], 10_000, 0.0869) / 100
    np.testing.assert_allclose(line["interval"], exact, atol=0.05)
    best, mean = rows["ResNet-110"]["lines"]
    errors = np.array([6.43, 6.61, 7.00])
    assert best["ours"] == pytest.approx(errors.min()) and best["difference"] == pytest.approx(0)
    assert mean["ours"] == pytest.approx(errors.mean()) and mean["spread"] == pytest.approx(errors.std(ddof=1))
    assert (mean["paper"], mean["paper_spread"]) == (6.61, 0.16) and mean["metric"] == "mean of 3 of 5 runs"
    assert "resnet110-seed3 interrupted (iteration 40,000 of 64,000)" in rows["ResNet-110"]["status"]
    assert rows["ResNet-32"]["status"] == "finished, without center" and rows["ResNet-32"]["lines"][0]["ours"] is None
    assert rows["ResNet-44"]["status"] == "not run" and rows["ResNet-1202"]["lines"][0]["difference"] is None
    shortened = rows_of(found, "table6-scale0.25")
    assert list(shortened) == ["ResNet-56"] and shortened["ResNet-56"]["lines"][0]["ours"] == 9.0
    page = (tmp_path / "page/report.html").read_text()
    assert "8.69" in page and "−0.06" in page and "shortened to 25%" in page  # noqa: RUF001
    links = [unquote(link) for link in re.findall(r'href="([^"#:]+)"', page)]
    assert len(links) > 20 and all((tmp_path / "page" / link).exists() for link in links)


def test_every_number_of_ours_leads_to_its_runs(made: Path, make: Report, tmp_path: Path) -> None:
    """And from their cards to the run folders."""
    found = make(made, experiments="table6,fig6,fig7")
    page = (tmp_path / "page/report.html").read_text()
    cards = set(re.findall(r'id="run-([^"]+)"', page))
    leads = set(re.findall(r'href="#run-([^"]+)"', page))
    assert leads <= cards and {*WRONG, "resnet56-seed0-scale0.25", "plain20-seed0"} <= leads

    def led(name: str, number: str, times: int) -> bool:
        return page.count(f'<a href="#run-{name}">{number}</a>') == times

    assert led("resnet20-seed0", "8.69", 2), "Table 6 and the test error of Fig. 6"
    assert led("resnet56-seed0-scale0.25", "9.00", 2) and led("resnet56-seed0", "7.03", 2)
    seeds = [f'<a href="#run-resnet110-seed{number}">resnet110-seed{number}</a>' for number in range(3)]
    assert f"from {', '.join(seeds)}</td>" in page and "resnet110-seed3</a>, " not in page
    responses = rows_of(found, "fig7")["plain-20"]
    assert responses["status"] == "finished" and page.count('href="#run-plain20-seed0"') == 2 + 4
    assert led("resnet20-seed0", "8.75", 0), "the paper's numbers are the paper's"


def test_damaged_runs_are_said_and_the_others_shown(runs: Path, make: Report) -> None:
    """The first folder by name among them, whose config says how the page is tracked."""
    with open(runs / "resnet20-seed0/metrics.jsonl", "r+") as file:
        file.write("no line of metrics\n")
    (runs / "resnet56-seed0/run.json").write_text('{"attempts": [')
    (runs / "plain20-seed0/config.yaml").write_text("arch: [")
    rows = rows_of(make(runs, experiments="table6,fig6"))
    assert "line 1 of" in rows["ResNet-20"]["status"] and "run.json is damaged" in rows["ResNet-56"]["status"]
    assert rows["ResNet-20"]["lines"][0]["ours"] is rows["ResNet-56"]["lines"][0]["ours"] is None
    assert rows["ResNet-110"]["lines"][1]["ours"] is not None
    assert report.tracking_of([runs]).experiment == load(runs / "resnet20-seed0/config.yaml").tracking.experiment


def test_errors_on_other_images_are_not_compared() -> None:
    """3.57% is of the 100,000 test images; a val set of 50,000 is what the other tables have."""
    measured = [Measured(figures={"top1_error": 20.0, "top5_error": 4.0}, images=50_000)]
    for name, wanted in (("table3", True), ("table5", False)):
        experiment, notes = find(name), []
        assert _comparable(experiment, experiment.rows[0], measured, notes) is wanted
        assert notes == ([] if wanted else ["on 50,000 images, not the paper's 100,000: no difference is given"])


@pytest.mark.costly("a process of its own imports MLflow, as a user's does")
def test_the_page_and_its_figures_are_artifacts_in_mlflow(made: Path, empty_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    runs = Path(shutil.copytree(made, tmp_path / "runs"))
    shutil.copy(empty_store, runs)
    for config in runs.glob("*/config.yaml"):  # how long the report may wait for MLflow
        found = load(config)
        config.write_text(to_yaml(replace(found, tracking=replace(found.tracking, close_seconds=limit(300)))))
    assert report.main(["--runs", str(runs), "--experiments", "table6,fig6", "--out", str(out)]) == 0
    run, client = only_run(store_uri(runs), "cifar10"), MlflowClient(store_uri(runs))
    assert (run.info.run_name, run.info.status) == ("report", "FINISHED")
    names = [one.path for one in client.list_artifacts(run.info.run_id)]
    assert set(names) == {"report.html", "fig6.svg", "fig6-scale0.25.svg"}
    kept = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path)))
    assert kept.read_bytes() == out.read_bytes()


def test_what_is_gone_unfinished_or_another_run_gives_no_number(runs: Path, make: Report, tmp_path: Path) -> None:
    shutil.rmtree(runs / "resnet20-seed0")
    config = runs / "resnet56-seed0/config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.0001", "weight_decay: 0.0005"))
    (runs / "resnet110-seed1/config.yaml").unlink()
    found = make(runs)
    rows = rows_of(found)
    assert rows["ResNet-20"]["status"] == "not run" and rows["ResNet-20"]["lines"][0]["ours"] is None
    assert rows["ResNet-56"]["status"] == "conflicting (optimizer.weight_decay: 0.0005 -> 0.0001)"
    assert rows["ResNet-56"]["lines"][0]["ours"] is None
    assert rows["ResNet-110"]["lines"][1]["ours"] == pytest.approx((6.43 + 7.00) / 2)
    assert [sentence.split(" has ")[0] for sentence in found["warnings"]] == [str(runs / "resnet110-seed1")]
    page = (tmp_path / "page/report.html").read_text()
    assert "8.69" not in page and "resnet20-seed0" not in page
    tables, others = page.split('<section id="others">')
    assert "7.03" not in tables and "7.03" in others, "it is a run, though not the experiment's"


@pytest.mark.slow
def test_a_run_in_two_folders_is_not_chosen_between(runs: Path, make: Report, tmp_path: Path) -> None:
    shutil.copytree(runs / "resnet20-seed0", tmp_path / "others/resnet20-seed0")
    row = rows_of(make(runs, tmp_path / "others"))["ResNet-20"]
    assert "stands in" in row["status"] and row["lines"][0]["ours"] is None
    shutil.rmtree(runs / "resnet20-seed0")
    assert rows_of(make(runs, tmp_path / "others"))["ResNet-20"]["lines"][0]["ours"] == 8.69


def test_a_run_that_only_evaluated_itself_has_wilsons_interval(digits: Path, make: Report, tmp_path: Path) -> None:
    images = len(Dataset(digits).split("val"))
    folder = write_run(spec_of("resnet20-seed0"), tmp_path / "runs", wrong=round(10_000 * 7 / images), tested=False)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("data: data/cifar10", f"data: {digits}"))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "dataset_sha256": Dataset(digits).sha256}))
    row = rows_of(make(tmp_path / "runs"))["ResNet-20"]
    assert row["lines"][0]["interval"] == pytest.approx(wilson_of_scipy(7, images))
    assert row["lines"][0]["difference"] is None, "355 digits are not CIFAR-10's test set"
    assert any("not the paper's 10,000" in note for note in row["notes"])


@pytest.mark.parametrize(("wrong", "images"), [(0, 50), (50, 50), (875, 10_000)])
def test_wilson_is_scipys(wrong: int, images: int) -> None:
    assert wilson_interval(wrong, images) == pytest.approx(wilson_of_scipy(wrong, images), abs=1e-6)


def wilson_of_scipy(wrong: int, images: int) -> tuple[float, float]:
    from scipy import stats  # here: it takes seconds, and every worker imports this module

    exact = stats.binomtest(wrong, images).proportion_ci(method="wilson")
    return 100 * exact.low, 100 * exact.high


def test_facts_of_a_run(made: Path) -> None:
    facts = read_facts(made / "resnet20-seed0", 128)
    assert facts.hardware == "4 CPU cores" and facts.images_per_second == 1000
    assert facts.unit_hours == pytest.approx(64_000 * 128 / 1000 * 4 / 3600) and facts.unit == "CPU core hours"
    wanted = resolve(spec_of("resnet56-seed0"))
    assert deviations(load(made / "resnet56-seed0/config.yaml"), wanted) == ["precision: float32 -> bf16"]
    strays = deviations(load(made / "resnet56-seed0-scale0.25/config.yaml"), wanted)
    assert "iterations: 64000 -> 16000" in strays and "schedule.steps: [32000, 48000] -> [8000, 12000]" in strays


def test_what_the_paper_shows_beside_our_rows_stands_in_the_experiments() -> None:
    experiments = {name: find(name) for name in names()}
    assert [name for name, one in experiments.items() if one.others] == ["table3", "table4", "table5", "table6"]
    figures = {name: one for name, one in experiments.items() if one.figure.panels}
    assert list(figures) == ["fig1", "fig4", "fig6"]
    for figure in figures.values():
        shown = {label for panel in figure.figure.panels for label in panel.rows}
        assert shown == {row.label for row in figure.rows}
        assert figure.figure.x_limits and figure.figure.y_limits


TABLE = """
title: Two nets
place: Table 0
config: cifar10.yaml
measure: error
protocols: [center]
rows:
  - {label: mine, nets: [{arch: resnet20}], paper: {top1_error: 8.75, top5_error: 0.5}}
others:
  - {name: Another net, top1: 11.25}
  - {name: A third, top1: 10.5, top5: 1.5}
"""
FIGURE = """
title: Curves of two nets
place: Fig. 0
config: cifar10.yaml
measure: curve
figure:
  x_limits: [0, 60]
  y_limits: [10, 60]
  panels:
    - {title: what is learned, rows: [plain, residual], kind: train}
    - {title: what is left, rows: [residual, mine]}
  marks_from: table.yaml
  mark_note: The diamond is of Table 0.
rows:
  - {label: plain, nets: [{arch: plain20}]}
  - {label: residual, nets: [{arch: resnet20}], paper: {top1_error: 9}}
  - {label: mine, nets: [{arch: resnet56}]}
"""


def test_a_table_and_a_figure_of_ones_own_are_one_file_each(made: Path, make: Report, tmp_path: Path) -> None:
    """Outside configs/: other methods' rows, axes, panels and end points come from the YAML file alone."""
    (tmp_path / "table.yaml").write_text(TABLE)
    (tmp_path / "figure.yaml").write_text(FIGURE)
    found = make(made, experiments=f"{tmp_path / 'table.yaml'},{tmp_path / 'figure.yaml'}")
    page = (tmp_path / "page/report.html").read_text()
    assert [line["metric"] for line in rows_of(found, "table")["mine"]["lines"]] == ["top-1", "top-5"]
    others = re.findall(
        r'<th scope="row"><span.*?>(.+?)</span></th><td class="text metric">(.+?)</td><td.*?>(.+?)</td>', page
    )
    assert others == [("Another net", "top-1", "11.25"), ("A third", "top-1 / top-5", "10.50 / 1.50")]
    figure = page[page.index('<section id="figure">') :]
    panels = re.findall(r"<svg.*?</svg>", figure[: figure.index("</figure>")], re.DOTALL)
    assert ["what is learned" in panel for panel in panels] == [True, False]
    assert ["what is left" in panel for panel in panels] == [False, True]
    for panel in panels:
        ticks = [int(text) for text in re.findall(r">(\d+)</text>", panel)]
        assert ticks == [*range(0, 61, 10), *range(10, 61, 10)]
    assert "The diamond is of Table 0." in figure
    ends = {label: row[-1] for label, row in found["experiments"]["figure"]["figure"]["rows"].items()}
    assert ends == {"plain": None, "residual": None, "mine": 8.75}, "of the row of that label in table.yaml"


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("empty", "holds no run"),
        ("missing", "there is no folder"),
        ("a run", "is a run folder itself"),
        ("experiment", "there is no experiment 'table66': did you mean 'table6'"),
    ],
)
def test_bad_input_gets_one_sentence(mistake: str, sentence: str, made: Path, tmp_path: Path) -> None:
    folder = {"empty": tmp_path, "missing": tmp_path / "no", "a run": made / "resnet20-seed0"}.get(mistake, made)
    name = "table66" if mistake == "experiment" else "table6"
    with pytest.raises(UserError, match=sentence):
        report.main(["--runs", str(folder), "--experiments", name, "--out", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()
