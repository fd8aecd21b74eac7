"""A new MLflow store costs 5 s to make: it is made once and copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import shared_folder

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_configure(config: pytest.Config) -> None:
    # MLflow 3.17 under SQLAlchemy 2.1: not ours to mend.
    config.addinivalue_line("filterwarnings", "ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file as MLflow makes it."""

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return shared_folder(tmp_path_factory, "mlflow-store", make) / "mlflow.db"


@pytest.fixture
def runs(tmp_path: Path, empty_store: Path) -> Path:
    """A folder for run folders, with an empty MLflow store in it; its name holds a space."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder
