"""What several tests need: the demo's dataset of real handwritten digits, made by the real command's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

import pipeline  # noqa: F401 - before torch: it tells OpenMP's threads how to wait

ROOT = Path(__file__).resolve().parents[1]

# A shell's background jobs (`make test &`) ignore Ctrl-C, and so would every program that is started here to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


def skip_without(reason: str) -> NoReturn:
    """Skip this test for want of a program that CI installs; fail it in CI (REQUIRE_CLUSTER, which .ci/run sets)."""
    if os.environ.get("REQUIRE_CLUSTER"):
        pytest.fail(f"{reason}; it may not be skipped, since REQUIRE_CLUSTER is set")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset folder of the demo."""
    from data_prep.digits import write_digits

    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "images")
    command = [sys.executable, "data_prep/shard_imagenet.py", folder / "images", folder / "dataset", "--name", "digits"]
    sizes = ["--statistics-size", "32", "--statistics-short-side", "36"]
    subprocess.run([*command, *sizes], cwd=ROOT, check=True, capture_output=True)
    return folder / "dataset"
