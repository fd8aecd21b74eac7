"""Two hundred updates on 1 to 32 ranks: one trajectory (contract 4)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, GROUP, ITERATIONS, SIDE, CLASSES = 64, 8, 200, 8, 5


def train(world: World, reduction: str, dtype: torch.dtype) -> tuple[str, np.ndarray]:
    """(SHA-256 of the weights, losses of the iterations) of a small net on labelled noise with a learnable shift."""
    plan = plan_groups(BATCH, GROUP, world.rank, world.size)
    step = TrainingStep(
        build("resnet8", classes=CLASSES, generator=torch.Generator().manual_seed(0)).to(dtype),
        StepConfig(batch=BATCH, reduction=reduction),
        plan,
        world,
    )
    generator = torch.Generator().manual_seed(1)
    for iteration in range(ITERATIONS):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        images = torch.randn(BATCH, SIDE, SIDE, 3, generator=generator) + labels[:, None, None, None] / 4
        step.step(images[plan.rows].to(dtype), labels[plan.rows], 0.02 if iteration < 150 else 0.002)
    values = [value.detach().contiguous().numpy().tobytes() for value in step.model.parameters()]
    losses = step.take_metrics()[:, 0]
    step.close()
    return hashlib.sha256(b"".join(values)).hexdigest(), losses


def alone(reduction: str, dtype: torch.dtype) -> tuple[str, np.ndarray]:
    torch.set_num_threads(1)
    return train(ALONE, reduction, dtype)


@pytest.mark.slow
def test_up_to_batch_over_group_ranks_give_the_same_bits() -> None:
    digest, losses = alone("tree", torch.float32)
    assert losses[-10:].mean() < 0.6 * losses[:10].mean(), "the net must learn, or equality says little"
    for size in (2, 4, 8):
        for other_digest, other_losses in run_ranks(size, train, "tree", torch.float32, timeout=300):
            assert other_digest == digest
            np.testing.assert_array_equal(other_losses, losses)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_allreduce_and_more_ranks_than_groups_to_a_billionth(size: int) -> None:
    """float64; from 16 ranks on a group spans ranks."""
    _, losses = alone("auto", torch.float64)
    for _, other_losses in run_ranks(size, train, "allreduce", torch.float64, timeout=500):
        np.testing.assert_allclose(other_losses, losses, rtol=1e-9)
