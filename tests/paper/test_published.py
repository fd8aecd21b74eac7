"""Errors that others published: the figures in the experiments, and what stands beside ours on the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paper.reading import find, names
from paper.rows import evaluate
from paper.spec import resolve
from paper.state import RunState
from tests.paper.run_folders import Report, rows_of

# Top-1 and top-5: the README of KaimingHe/deep-residual-networks, and the weights of torchvision's first version.
README = {
    "ResNet-50": {"center": (24.7, 7.8), "ten-crop": (22.9, 6.7)},
    "ResNet-101": {"center": (23.6, 7.1), "ten-crop": (21.8, 6.1)},
    "ResNet-152": {"center": (23.0, 6.7), "ten-crop": (21.4, 5.7)},
}
TORCHVISION = {
    "ResNet-34 B": (26.69, 8.58),
    "ResNet-50": (23.87, 7.14),
    "ResNet-101": (22.63, 6.45),
    "ResNet-152": (21.69, 5.95),
}


def test_table_3_has_them_beside_the_papers_and_ours() -> None:
    assert [name for name in names() if find(name).published] == ["table3"]
    results = evaluate(find("table3"), lambda spec: RunState(kind="not run", config=resolve(spec)))
    for result in results:
        label = result.row.label
        lines = {"ten-crop": [line.published for line in result.lines]}
        lines["center"] = [line.published for line in result.one_crop]
        for protocol, found in lines.items():
            released = [values.get("Released nets") for values in found]
            assert released == list(README.get(label, {}).get(protocol, [None] * len(found)))
        other = [values.get("torchvision V1") for values in lines["center"]]
        assert other == list(TORCHVISION.get(label, ()))
        assert all(line.paper is None for line in result.one_crop), "the paper gives no error of the centre crop"


TABLE = """
title: Nets
place: Table 0
config: cifar10.yaml
measure: error
protocols: [center]
rows:
  - {label: both, nets: [{arch: resnet20}], paper: {top1_error: 8.75}}
  - {label: not in the paper, nets: [{arch: resnet56}]}
published:
  - name: Akamaster
    source: another code
    errors:
      - {row: both, protocol: center, top1_error: 8.27}
      - {row: not in the paper, protocol: center, top1_error: 6.0}
"""


def test_the_difference_is_from_the_paper_and_only_without_it_from_others(
    made: Path, make: Report, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(TABLE)
    rows = rows_of(make(made, experiments=str(file)), "own")
    both, other = rows["both"]["lines"][0], rows["not in the paper"]["lines"][0]
    assert both["difference"] == pytest.approx(8.69 - 8.75) and both["published"] == {"Akamaster": 8.27}
    assert other["difference"] == pytest.approx(7.03 - 6.0) and other["paper"] is None
    page = (tmp_path / "page/report.html").read_text()
    assert re.search(r'published">8\.27</td>', page) and re.search(r'published">6\.0</td>', page), "digits as published"
    assert "Akamaster: another code." in page
