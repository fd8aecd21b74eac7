from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.doors import TINY, environment, final_checkpoint


@pytest.fixture(scope="session")
def tiny(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file: ResNet-8 on the digits, 12 iterations, 4 normalization groups, runs/ in the working directory."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY.format(data=digits))
    return path


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> str:
    """The final checkpoint of the tiny config trained in one process, without any door."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-m", "pipeline.train", "--config", str(tiny), "--name", "run"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, timeout=200)
    return final_checkpoint(folder / "runs" / "run")
