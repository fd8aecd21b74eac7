"""The switches that choose CUDA's kernels: what they are inside a run, and that they are as before behind it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch._inductor.config

from pipeline.base.command import UserError
from pipeline.run.config import Config, trajectory
from pipeline.training.kernels import WORKSPACE, chosen_kernels


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which torch finds a GPU. No switch touches one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(WORKSPACE, raising=False)


def switches() -> dict[str, Any]:
    memory: Any = torch.utils.deterministic
    return {
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch": torch.are_deterministic_algorithms_enabled(),
        "torch only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch fills memory": memory.fill_uninitialized_memory,
        "inductor": torch._inductor.config.deterministic,
        "cublas": os.environ.get(WORKSPACE),
    }


@pytest.mark.usefixtures("gpu")
def test_a_deterministic_run_sets_every_switch_and_sets_them_back() -> None:
    before = switches()
    with pytest.raises(RuntimeError), chosen_kernels("auto", deterministic=True, benchmark=False):
        assert switches() == {
            "cudnn.deterministic": True,
            "cudnn.benchmark": False,
            "torch": True,
            "torch only warns": True,
            "torch fills memory": False,
            "inductor": True,
            "cublas": ":4096:8",
        }
        raise RuntimeError  # as a run that fails
    assert switches() == before


@pytest.mark.usefixtures("gpu")
def test_a_run_that_times_its_convolutions_changes_nothing_else() -> None:
    before = switches()
    with chosen_kernels("cuda", deterministic=False, benchmark=True):
        assert switches() == {**before, "cudnn.benchmark": True}
    assert switches() == before


@pytest.mark.usefixtures("gpu")
def test_a_users_workspace_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with chosen_kernels("cuda", deterministic=True, benchmark=False):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_cpus_kernels_stay_as_they_are(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cpu")
    before = switches()
    with chosen_kernels(device, deterministic=True, benchmark=True):
        assert switches() == before


def test_the_same_bits_and_the_fastest_convolutions_exclude_each_other() -> None:
    with pytest.raises(UserError, match="deterministic and cudnn_benchmark exclude each other"):
        Config(deterministic=True, cudnn_benchmark=True)


def test_a_run_may_go_on_with_other_kernels() -> None:
    others = (Config(deterministic=True), Config(cudnn_benchmark=True), Config(compile=True, compile_by="stages"))
    assert all(trajectory(other) == trajectory(Config()) for other in others)
