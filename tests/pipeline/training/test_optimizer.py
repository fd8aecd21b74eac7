"""Fine-tuning's switches of the update: a rate of the body's own, frozen BN. References: loops in plain PyTorch, float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.base.command import UserError
from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import plan_groups
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, CLASSES = 8, 5
RATES = (0.1, 0.1, 0.01, 0.05)  # falls and rises


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 16, 16, 3, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in RATES
    ]


def net() -> nn.Module:
    """A net whose BN layers are not fresh ones, in which frozen statistics could not be told from others."""
    generator = torch.Generator().manual_seed(0)
    model = build("resnet8", classes=CLASSES, generator=generator).double()
    for name, value in model.state_dict().items():
        if "bn" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    return model


def trained(
    model: nn.Module, optimizer: OptimizerConfig, freeze_bn: bool = False, world: World = ALONE
) -> dict[str, torch.Tensor]:
    config = StepConfig(batch=BATCH, optimizer=optimizer, freeze_bn=freeze_bn)
    plan = plan_groups(BATCH, BATCH, world.rank, world.size)
    step = TrainingStep(model, config, plan, world)
    for (images, labels), rate in zip(batches(), RATES, strict=True):
        step.step(images[plan.rows], labels[plan.rows], rate)
    step.statistics.gather_into_model(len(RATES))
    step.close()
    return {name: value.detach().clone() for name, value in step.model.state_dict().items()}


@pytest.mark.parametrize("factor", [0.1, 3.0])
@pytest.mark.parametrize("decay_all", [True, False])
def test_the_body_follows_caffes_update_at_its_own_rate(factor: float, decay_all: bool) -> None:
    """v = m v + rate (g + decay w); w = w - v, with the rate of each parameter."""
    config = OptimizerConfig(body_lr_factor=factor, weight_decay=0.01, decay_norm_and_bias=decay_all)
    model = net()
    ours = trained(copy.deepcopy(model), config)
    model.train()
    velocity = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for (images, labels), rate in zip(batches(), RATES, strict=True):
        model.zero_grad()
        F.cross_entropy(model(images.permute(0, 3, 1, 2)), labels).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None
                own = rate * (1 if name.startswith("fc.") else factor)
                decay = 0.01 if decay_all or weight.ndim > 1 else 0.0
                velocity[name] = 0.9 * velocity[name] + own * (weight.grad + decay * weight)
                weight -= velocity[name]
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.detach(), rtol=1e-9, atol=1e-12)


def test_a_body_without_a_rate_stays_as_it_is() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    after = trained(model, OptimizerConfig(body_lr_factor=0.0))
    for name, _ in model.named_parameters():
        assert torch.equal(after[name], before[name]) != name.startswith("fc."), name
    assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"]), (
        "its statistics follow the new images"
    )


def test_frozen_normalization_is_torchvisions() -> None:
    """The reference: the net with FrozenBatchNorm2d in place of each BN, trained by torch's SGD at one rate."""
    model = net()
    before = copy.deepcopy(model.state_dict())
    theirs = with_frozen_norms(copy.deepcopy(model))
    ours = trained(model, OptimizerConfig(caffe_momentum=False), freeze_bn=True)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for (images, labels), rate in zip(batches(), RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(theirs(images.permute(0, 3, 1, 2)), labels).backward()
        optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)
    norms = [name for name in before if ("bn" in name or "running" in name) and "num_batches" not in name]
    assert norms and all(torch.equal(ours[name], before[name]) for name in norms)


def with_frozen_norms(model: nn.Module) -> nn.Module:
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps).double()
            frozen.load_state_dict(module.state_dict())
            model.set_submodule(name, frozen)
    return model


def fine_tuned_weights(world: World) -> dict[str, NDArray[np.float64]]:
    """NumPy's arrays: a tensor's memory would go with the process that made it."""
    weights = trained(net(), OptimizerConfig(body_lr_factor=0.1), True, world)
    return {name: value.numpy() for name, value in weights.items()}


def test_ranks_that_share_a_group_follow_one_rank() -> None:
    """Frozen normalization needs no statistics of the group, so ranks that share one exchange none."""
    expected = fine_tuned_weights(ALONE)
    for found in run_ranks(2, fine_tuned_weights):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match=r"body_lr_factor is .*at least 0"):
        OptimizerConfig(body_lr_factor=factor)
