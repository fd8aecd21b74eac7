"""Records that the report keeps of runs: what they hold, what they leave alone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from paper import report
from pipeline.base.command import UserError
from pipeline.run.options import load
from tests.paper.run_folders import Report


def test_records_hold_what_the_page_is_read_from(runs: Path, make: Report, tmp_path: Path) -> None:
    """Copies without the large files, whose hashes they have, and without this machine's places; the page links them."""
    records = tmp_path / "page/records"
    for name in ("plain20-seed0", "resnet20-seed0"):
        config = runs / name / "config.yaml"
        config.write_text(config.read_text().replace("data: data/cifar10", "data: /some/where/cifar10"))
    make(runs, "--records", records, experiments="table6,fig6")
    record, run = records / "resnet20-seed0", runs / "resnet20-seed0"
    assert {path.name for path in record.iterdir()} == {
        "config.yaml", "run.json", "metrics.jsonl", "responses.json", "record.json"
    }  # fmt: skip
    assert (record / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert "/some" not in (record / "config.yaml").read_text() and load(record / "config.yaml").data == "cifar10"
    assert "host" not in json.loads((record / "run.json").read_text())["attempts"][0]
    files = json.loads((record / "record.json").read_text())["files"]
    large = [*run.glob("checkpoints/*"), *run.glob("scores/*.npz")]
    assert len(large) > 1
    assert files == {
        str(path.relative_to(run)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in large
    }
    links = [unquote(link) for link in re.findall(r'href="([^"#:]+)"', (tmp_path / "page/report.html").read_text())]
    assert len(links) > 20 and all(link.startswith("records/") for link in links)
    (run / "responses.json").unlink()
    make(runs, "--records", records)
    assert not (record / "responses.json").exists() and (records / "resnet56-seed0").exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_records_replace_nothing_but_records(runs: Path, tmp_path: Path, elsewhere: bool) -> None:
    """Not the run folders themselves, nor those of a backup."""
    records = Path(shutil.copytree(runs, tmp_path / "backup")) if elsewhere else runs
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*")}
    with pytest.raises(UserError, match="is no record of an earlier report"):
        report.main(["--runs", str(runs), "--records", str(records), "--out", str(tmp_path / "other.html")])
    assert {path: path.stat().st_mtime_ns for path in records.rglob("*")} == before
    assert not (tmp_path / "other.html").exists()
