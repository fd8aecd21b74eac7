"""With `deterministic` a GPU keeps the promise that a CPU always keeps: run again, or killed and continued, the same bits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.run.config import Config
from tests.fleet import Fleet
from tests.helpers import wait_for
from tests.pipeline.small_runs import config_of, hold_before, series, weights


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_deterministic_run_is_the_same_again_and_after_a_kill(compiled: bool, digits: Path, tmp_path: Path) -> None:
    """Of an ImageNet net, which has max pooling, in bf16; each run in a process of its own, as cuBLAS needs it."""
    once, again, killed = (
        replace(
            config_of(digits, tmp_path, name), arch="resnet18", device="cuda", precision="bf16", compile=compiled,
            deterministic=True,
        )
        for name in ("once", "again", "killed")
    )  # fmt: skip
    for config in (once, again):
        finish(config, tmp_path / f"logs-{config.name}")
    job = Fleet(killed, 1, tmp_path / "logs-killed", partial(hold_before, folder=tmp_path, iterations=(23,)))
    wait_for((tmp_path / "at-23").exists, "iteration 23", 300)
    job.kill()
    job.wait(60)
    finish(killed, tmp_path / "logs-continued")
    for config in (again, killed):
        assert series(config) == series(once)
        assert weights(config) == weights(once)


def finish(config: Config, logs: Path) -> None:
    job = Fleet(config, 1, logs)
    assert job.wait(300) == [0], job.said(0)
