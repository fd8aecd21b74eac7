"""torch.compile in the training step: the same trajectory as without, the same bits on any number of ranks."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models.resnet import Shortcut, build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, GROUP, STEPS, SIDE = 16, 4, 4, 8
COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, which torch.compile needs on a CPU")


def train(
    world: World, compiled: bool, group: int = GROUP, shortcut: Shortcut = "default"
) -> tuple[str | None, str, np.ndarray]:
    """(why it was not compiled, SHA-256 of the weights, losses) after STEPS updates of a small net, in float32."""
    plan = plan_groups(BATCH, group, world.rank, world.size)
    step = TrainingStep(
        build("resnet8", classes=5, shortcut=shortcut, generator=torch.Generator().manual_seed(0)),
        StepConfig(batch=BATCH, reduction="tree", compile_crop=SIDE if compiled else None),
        plan,
        world,
    )
    assert all(parameter.grad is None for parameter in step.model.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, SIDE, SIDE, 3, generator=generator)
        labels = torch.randint(5, (BATCH,), generator=generator)
        step.step(images[plan.rows], labels[plan.rows], 0.05)
    step.statistics.average_into_model(step.statistics.all_groups(), STEPS)
    values = [value.contiguous().numpy().tobytes() for value in step.model.state_dict().values()]
    losses = step.take_metrics()[:, 0]
    step.close()
    return step.not_compiled, hashlib.sha256(b"".join(values)).hexdigest(), losses


def alone(*arguments: Any) -> tuple[str | None, str, np.ndarray]:
    torch.set_num_threads(1)
    torch._dynamo.reset()
    return train(ALONE, *arguments)


@pytest.mark.costly("torch.compile imports itself and traces the net before it misses the compiler")
def test_where_compiling_fails_training_goes_on_without_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing was compiled before
    with torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",)}):
        reason, digest, _ = alone(True)
    assert reason is not None and reason.startswith("rank 0:") and "c++" in reason.lower()
    assert digest == alone(False)[1]


@needs_compiler
@pytest.mark.slow  # compiles for half a minute
def test_compiled_updates_are_those_of_the_eager_net_and_of_any_number_of_ranks() -> None:
    reason, digest, losses = alone(True)
    assert reason is None
    _, eager_digest, eager_losses = alone(False)
    assert digest != eager_digest  # it was compiled
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-4)
    for ranks in (2, 4):
        assert {found for _, found, _ in run_ranks(ranks, train, True, timeout=400)} == {digest}


@needs_compiler
@pytest.mark.slow  # compiles for half a minute
@pytest.mark.parametrize("shortcut", ["A", "B"])  # B: two normalizations that do not wait for one another
def test_groups_that_span_ranks_exchange_their_statistics_inside_the_compiled_net(shortcut: Shortcut) -> None:
    reasons, digests, losses = zip(*run_ranks(4, train, True, BATCH // 2, shortcut, timeout=400), strict=True)
    assert set(reasons) == {None} and len(set(digests)) == 1
    _, eager_digest, eager_losses = run_ranks(4, train, False, BATCH // 2, shortcut)[0]
    assert digests[0] != eager_digest  # it was compiled
    np.testing.assert_allclose(losses[0], eager_losses, rtol=1e-4)
    _, _, alone_losses = alone(False, BATCH // 2, shortcut)
    np.testing.assert_allclose(losses[0], alone_losses, rtol=1e-4)


@needs_compiler
@pytest.mark.slow  # compiles twice
def test_a_rank_that_cannot_compile_is_no_trap_for_the_others(tmp_path: Path) -> None:
    """It never reaches the collectives that the others' compiled nets would wait in."""
    reasons, digests, _ = zip(*run_ranks(2, one_cannot, str(tmp_path), timeout=400), strict=True)
    assert len(set(reasons)) == 1 and "rank 1:" in reasons[0]
    assert set(digests) == {run_ranks(2, train, False, BATCH)[0][1]}


def one_cannot(world: World, cache: str) -> tuple[str | None, str, np.ndarray]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # nothing was compiled before
    compiler = "/nonexistent/c++" if world.rank == 1 else COMPILER or "c++"
    with torch._inductor.config.patch({"cpp.cxx": (compiler,)}):
        return train(world, True, BATCH)
