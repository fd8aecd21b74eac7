from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.run.options import load
from tests.conftest import shared_folder
from tests.fleet import Fleet
from tests.launch.launchers import TINY, final_checkpoint


@pytest.fixture(scope="session")
def tiny(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file: ResNet-8 on the digits, 12 iterations, 4 normalization groups, runs/ in the working directory."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY.format(data=digits))
    return path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> str:
    """The final checkpoint of the tiny config trained in one process, without any launcher."""

    def make(folder: Path) -> None:
        config = replace(load(tiny), runs=str(folder / "runs"), name="run")
        job = Fleet(config, 1, folder / "logs")
        assert job.wait(200) == [0], job.said(0)

    return final_checkpoint(shared_folder(tmp_path_factory, "reference", make) / "runs" / "run")
