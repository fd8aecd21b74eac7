"""What all tests share: limits and budgets, skips, the dataset of digits."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import pipeline  # noqa: F401 - before torch: it tells OpenMP's threads how to wait
from launch.local import reserve_port
from pipeline.base.command import UserError
from tests.budget import Budget
from tests.patience import limit, set_patience

# A shell's background jobs (`make test &`) ignore Ctrl-C, and so would every program that is started here to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup lets it be ignored, and every process that a test starts with it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", metavar="FILE", help="append what each case and shared fixture took, as lines of JSON")
    parser.addoption(
        "--strict-budget", action="store_true", help="fail cases that are over their budget (tests/budget.py)"
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        set_patience()  # before xdist starts its workers: they inherit it
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(Budget(config.getoption("--times"), config.getoption("--strict-budget")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)
    on_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpus and not _has_gpu():
        for item in on_gpus:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    if config.pluginmanager.hasplugin("timeout") and config.getoption("timeout") is None:
        for item in items:  # pytest-timeout's limits are stretched as all others are
            own = item.get_closest_marker("timeout")
            seconds = float(own.args[0] if own else config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(limit(seconds)), append=False)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the fork server of tests/ranks.py, with its imports, before a test of data_prep starts one without them."""
    if "tests.ranks" in sys.modules and session.items and not session.config.option.collectonly:
        sys.modules["tests.ranks"].start_server()


def skip_without(reason: str) -> NoReturn:
    """Skip this test for want of a program that CI installs; fail it in CI (REQUIRE_CLUSTER, which .ci/run sets)."""
    if os.environ.get("REQUIRE_CLUSTER"):
        pytest.fail(f"{reason}; it may not be skipped, since REQUIRE_CLUSTER is set")
    pytest.skip(reason)


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make(folder)` fills once a session, whichever of xdist's workers comes first. Tests leave it as it is."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, made = root / f"shared-{name}", root / f"shared-{name}.made"
    with open(root / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture
def port() -> Iterator[int]:
    """A TCP port for a server of the test: nothing else on this machine gets it meanwhile."""
    with reserve_port() as number:
        yield number


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset folder of the demo."""
    from tests.digits import write_dataset  # here: it imports scikit-learn

    return shared_folder(tmp_path_factory, "digits", write_dataset) / "dataset"
