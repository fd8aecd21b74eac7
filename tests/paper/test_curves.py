"""python -m pipeline.curves: what it draws and how it compares runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from paper import curves
from pipeline.base.command import UserError
from pipeline.evaluation.figures import Curve, Panel, svg


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two run folders that agree but for one val error, and one that is shorter."""
    for name, points, last in (("one", 40, 8.5), ("two", 40, 9.0), ("short", 10, 8.5)):
        lines = []
        for number in range(1, points + 1):
            train = {"kind": "train", "iteration": 100 * number, "loss": 2 / number, "top1_error": 80 / number}
            lines.append({**train, "time": number, "lr": 0.1, "images_per_second": 1.0 + len(name)})
        if points == 40:
            lines.append({"kind": "val", "iteration": 4000, "time": 41, "top1_error": last, "top5_error": 1.0})
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [tmp_path / name for name in ("one", "two", "short")]


def test_runs_are_drawn_and_compared(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "curves.svg"
    assert curves.main([*map(str, runs), "--out", str(out), "--json"]) == 0
    words = [element.text for element in ElementTree.parse(out).iter() if element.tag.endswith("text")]
    assert {"one", "two", "short"} <= set(words)
    one, two, short = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert (one["iterations"], one["train_error"], one["val_error"], one["largest_difference"]) == (4000, 2.0, 8.5, 0.0)
    # Loss and error of 40 log points, two errors of the evaluation; only the latter differ.
    assert (two["points"], two["largest_difference"]) == (82, 0.5)
    assert (short["points"], short["largest_difference"], short["val_error"]) == (20, 0.0, None)


def test_until_leaves_out_what_comes_after(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves.main([*map(str, runs[:2]), "--until", "1000", "--out", str(tmp_path / "c.svg"), "--json"])
    one, two = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert one["iterations"] == two["iterations"] == 1000 and two["largest_difference"] == 0.0


def test_a_folder_without_metrics_and_a_run_given_twice_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no metrics"):
        curves.main([str(tmp_path / "missing")])
    with pytest.raises(UserError, match="the same name"):
        curves.main([str(runs[0]), str(runs[0])])


@pytest.mark.parametrize(("last", "label", "tick"), [(400, "iterations", "400"), (64_000, "iterations (1e4)", "6")])
def test_the_axis_counts_in_the_paper_s_unit_only_where_it_reaches_that_far(last: int, label: str, tick: str) -> None:
    curve = Curve(net="net", kind="test", x=np.linspace(1, last, 5), y=np.linspace(90, 10, 5))
    panel = Panel(title="", x_label="iterations", y_label="", nets=["net"], curves=[curve], iterations=True)
    texts = re.findall(r">([^<]+)</text>", svg([panel], "curves", "curves"))
    assert label in texts and tick in texts
