"""Shared by tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config
from tests.pipeline.small_runs import config_of, train_rank
from tests.ranks import run_ranks


@pytest.fixture(scope="session")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The reference: one process, never interrupted. Tests leave its folder as it is."""
    config = config_of(digits, tmp_path_factory.mktemp("runs"), "reference")
    assert run_ranks(1, train_rank, config) == [0]
    return config
