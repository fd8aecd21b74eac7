"""Data sets of the analysis tests."""

from __future__ import annotations

import pytest

from pipeline.data.dataset import Dataset
from tests.pipeline.evaluation.conftest import small_photographs


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """150 images: three evaluation blocks, the last one short."""
    return small_photographs(150, tmp_path_factory.mktemp("analysed") / "data")
