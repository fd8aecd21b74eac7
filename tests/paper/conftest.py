"""What these tests need: run folders, the report's JSON, and of the pipeline's a trained run and MLflow's empty store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paper import report
from tests.paper.run_folders import WRONG, Report, spec_of, write_run
from tests.pipeline.conftest import empty_store, undisturbed

__all__ = ["empty_store", "undisturbed"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tested runs, one untested, one interrupted, one shortened, two plain nets; all with layer responses or none."""
    runs = tmp_path_factory.mktemp("report") / "runs"
    for name, wrong in WRONG.items():
        write_run(spec_of(name), runs, wrong=wrong, std=0.6 if name.endswith("20-seed0") else None)
    write_run(spec_of("resnet32-seed0"), runs, tested=False)
    write_run(spec_of("resnet110-seed3"), runs, iteration=40_000)
    write_run(spec_of("resnet56-seed0"), runs, wrong=900, scale=0.25)
    write_run(spec_of("plain20-seed0"), runs, wrong=905, std=1.6)
    return runs


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture
def make(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Report:
    """The command's JSON."""

    def call(*arguments: object, experiments: str = "table6") -> dict[str, Any]:
        words = ["--runs", *arguments, "--experiments", experiments, "--out", tmp_path / "page/report.html"]
        assert report.main([*map(str, words), "--no-tracking", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return call
