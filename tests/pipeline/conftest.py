"""Shared by tests of whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.run.config import Config
from tests.conftest import shared_folder
from tests.pipeline.small_runs import config_of, train_rank
from tests.pipeline.tracking.conftest import empty_store  # noqa: F401
from tests.ranks import run_ranks


@pytest.fixture(scope="session")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The reference: one process, never interrupted. Tests leave its folder as it is, and may train others beside it."""

    def make(folder: Path) -> None:
        assert run_ranks(1, train_rank, config_of(digits, folder, "reference")) == [0]

    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(shared_folder(tmp_path_factory, "undisturbed", make), runs, dirs_exist_ok=True)
    return config_of(digits, runs, "reference")
