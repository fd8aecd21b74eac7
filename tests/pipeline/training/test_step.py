"""Updates on 1, 2, 4 ... ranks: one trajectory; and one rank against a plain PyTorch loop."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.resnet import build
from pipeline.process.world import World
from pipeline.training.batchnorm import GroupPlan, GroupStatistics, plan_groups
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.step import StepConfig, TrainingStep
from tests.ranks import ALONE, run_ranks

BATCH, GROUP, STEPS, CLASSES = 32, 8, 6, 5


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 16, 16, 3, generator=generator).to(dtype),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def learning_rate(step: int) -> float:
    return 0.1 if step < 4 else 0.01


def net(dtype: torch.dtype) -> nn.Module:
    return build("resnet8", classes=CLASSES, generator=torch.Generator().manual_seed(0)).to(dtype)


def step_of(model: nn.Module, plan: GroupPlan, world: World = ALONE, **settings: Any) -> TrainingStep:
    """The step of BATCH images; `settings` as `StepConfig` takes them: the tree in float32 where they do not say."""
    return TrainingStep(model, StepConfig(**{"batch": BATCH, "reduction": "tree", **settings}), plan, world)


def train(
    world: World, reduction: str, dtype: torch.dtype, group: int = GROUP, smoothing: float = 0.0, ema_decay: float = 0.0
) -> tuple[str, np.ndarray, dict]:
    """(SHA-256 of weights and statistics, metrics [STEPS, 3], state) after STEPS updates; state["ema.*"]: the average."""
    plan = plan_groups(BATCH, group, world.rank, world.size)
    step = step_of(
        net(dtype),
        plan,
        world,
        reduction=reduction,
        label_smoothing=smoothing,
        ema_decay=ema_decay,
    )
    for number, (images, labels) in enumerate(batches(dtype)):
        step.step(images[plan.rows], labels[plan.rows], learning_rate(number))
    step.statistics.average_into_model(step.statistics.all_groups(), STEPS)
    tensors = dict(step.model.state_dict())
    if average := step.average:
        average.statistics.average_into_model(average.statistics.all_groups(), STEPS)
        tensors |= {f"ema.{name}": value for name, value in average.model.state_dict().items()}
    state = {name: value.detach().contiguous().numpy() for name, value in tensors.items()}
    digest = hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
    metrics = step.take_metrics()
    step.close()
    return digest, metrics, state


def alone(function, *arguments):
    torch.set_num_threads(1)
    return function(ALONE, *arguments)


def test_one_rank_equals_a_plain_loop() -> None:
    """Reference: the obvious loop over groups, torch.optim.SGD, Caffe's momentum written out, float64."""
    model = net(torch.float64).train()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number, (images, labels) in enumerate(batches(torch.float64)):
        model.zero_grad()
        for first in range(0, BATCH, GROUP):
            logits = model(images[first : first + GROUP].permute(0, 3, 1, 2))
            (F.cross_entropy(logits, labels[first : first + GROUP], reduction="sum") / BATCH).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = parameter.grad + 1e-4 * parameter
                velocity[name] = 0.9 * velocity[name] + learning_rate(number) * gradient  # Caffe: v = m v + lr g
                parameter -= velocity[name]
    _, metrics, state = alone(train, "auto", torch.float64)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(state[name], parameter.detach().numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
    assert metrics.shape == (STEPS, 3) and (metrics[:, 1] <= BATCH).all() and (metrics[:, 2] == 1).all()


def test_running_statistics_are_the_average_over_groups() -> None:
    """Reference: one update, statistics of the first layer computed from the images."""
    images, labels = batches(torch.float64)[0]
    model = net(torch.float64)
    outputs = model.conv1(images.permute(0, 3, 1, 2)).detach().unflatten(0, (-1, GROUP))
    step = step_of(model, plan_groups(BATCH, GROUP, 0, 1))
    step.step(images, labels, 0.1)
    step.statistics.average_into_model(step.statistics.all_groups(), 1)
    means = outputs.mean(dim=(1, 3, 4))
    variances = outputs.transpose(1, 2).flatten(2).var(dim=2)  # unbiased, as torch keeps it
    torch.testing.assert_close(step.model.bn1.running_mean, 0.1 * means.mean(dim=0))
    torch.testing.assert_close(step.model.bn1.running_var, 0.9 + 0.1 * variances.mean(dim=0))
    assert step.model.bn1.num_batches_tracked == 1
    step.close()


def test_label_smoothing_and_average_equal_plain_loops() -> None:
    """Reference: cross-entropy with the smoothed target written out, and the average by its formula; float64.

    The reported loss is the cross-entropy with the labels themselves.
    """
    smoothing, decay = 0.1, 0.25
    model = net(torch.float64).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    for number, (images, labels) in enumerate(batches(torch.float64)):
        for group in optimizer.param_groups:
            if group["lr"] != learning_rate(number):
                for state in optimizer.state.values():
                    state["momentum_buffer"] *= group["lr"] / learning_rate(number)
                group["lr"] = learning_rate(number)
        optimizer.zero_grad()
        logs = F.log_softmax(model(images.permute(0, 3, 1, 2)), dim=1)
        target = (1 - smoothing) * F.one_hot(labels, CLASSES).double() + smoothing / CLASSES
        (-(target * logs).sum() / BATCH).backward()
        losses.append(-logs[torch.arange(BATCH), labels].mean().item())
        optimizer.step()
        d = min(decay, (1 + number) / (10 + number))
        for name, value in model.state_dict().items():
            average[name] = d * average[name] + (1 - d) * value if value.is_floating_point() else value
    _, metrics, state = alone(train, "auto", torch.float64, BATCH, smoothing, decay)
    np.testing.assert_allclose(metrics[:, 0], losses, rtol=1e-9)
    assert not np.allclose(state["ema.fc.weight"], state["fc.weight"], rtol=1e-4), "the average must differ"
    for name, value in average.items():
        if value.is_floating_point():
            np.testing.assert_allclose(state[f"ema.{name}"], value.detach(), rtol=1e-9, atol=1e-12, err_msg=name)


def test_mixed_images_and_binary_cross_entropy_equal_a_plain_loop() -> None:
    """Reference: the mean over mini-batch and classes with targets of 0 and 1 written out; groups, float64.

    Reported are the same loss, and the predictions that are not the class with the larger part of the mixture.
    """
    model = net(torch.float64).train()
    step = step_of(
        copy.deepcopy(model),
        plan_groups(BATCH, GROUP, 0, 1),
        loss="binary-cross-entropy",
        target_threshold=0.2,
        optimizer=OptimizerConfig(weight_decay=0.0, momentum=0.0),
    )
    partner = torch.arange(BATCH) ^ 1
    for number, (images, labels) in enumerate(batches(torch.float64)[:3]):
        weights = torch.rand(BATCH // 2, generator=torch.Generator().manual_seed(number)).repeat_interleave(2)
        step.step(images, labels, 0.1, (labels[partner], weights))
        model.zero_grad()
        total, wrong = 0.0, 0
        for first in range(0, BATCH, GROUP):
            logits = model(images[first : first + GROUP].permute(0, 3, 1, 2))
            targets = torch.zeros_like(logits)
            for row in range(GROUP):
                own, other, weight = labels[first + row], labels[partner][first + row], weights[first + row]
                for label, share in ((own, weight), (other, 1 - weight)):
                    if own == other or share > 0.2:
                        targets[row, label] = 1
                wrong += int(logits[row].argmax() != (own if weight >= 0.5 else other))
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (BATCH * CLASSES)
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        ((loss_of_step, wrong_of_step, _),) = step.take_metrics()
        assert wrong_of_step == wrong and loss_of_step == pytest.approx(total, rel=1e-9)
    for (name, found), expected in zip(step.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)
    step.close()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_bf16_are_computed_in_float32(smoothing: float) -> None:
    """Reference: the cross-entropy of the net's bf16 scores in float64. A loss in bf16 is off by up to 0.4%."""
    model, (images, labels) = net(torch.float32), batches()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = copy.deepcopy(model).train()(images.permute(0, 3, 1, 2))
    assert scores.dtype == torch.bfloat16
    step = step_of(model, plan_groups(BATCH, BATCH, 0, 1), precision="bf16", label_smoothing=smoothing)
    step.step(images, labels, 0.1)
    ((loss, _, _),) = step.take_metrics()
    assert loss == pytest.approx(F.cross_entropy(scores.double(), labels).item(), rel=1e-6)
    step.close()


@pytest.mark.parametrize("size", [2, 4])
def test_power_of_two_ranks_give_the_same_bits(size: int) -> None:
    """Weights, statistics and their moving averages."""
    arguments = ("tree", torch.float32, GROUP, 0.1, 0.9)
    digest, metrics, _ = alone(train, *arguments)
    for other_digest, other_metrics, _ in run_ranks(size, train, *arguments):
        assert other_digest == digest
        np.testing.assert_array_equal(other_metrics, metrics)


@pytest.mark.parametrize(("size", "group"), [(2, 8), pytest.param(4, 16, marks=pytest.mark.slow), (4, 32)])
def test_allreduce_and_shared_groups_follow_the_trajectory(size: int, group: int) -> None:
    """allreduce, and groups that span 2 and 4 ranks, to 1e-9 in float64."""
    _, metrics, state = alone(train, "auto", torch.float64, group)
    for _, other_metrics, other_state in run_ranks(size, train, "allreduce", torch.float64, group):
        np.testing.assert_allclose(other_metrics, metrics, rtol=1e-9)
        for name in state:
            np.testing.assert_allclose(other_state[name], state[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_groups_that_are_ranks_restart_on_another_number_of_them() -> None:
    """Saved by four ranks, taken up by one and by two: evaluation sees the same average."""
    saved = torch.arange(4.0)[:, None] + torch.zeros(
        4, sum(2 * m.num_features for m in batch_norms(net(torch.float32)))
    )
    for size in (1, 2):
        model = net(torch.float32)
        statistics = GroupStatistics(model, plan_groups(BATCH, "rank", size - 1, size))
        statistics.load_all_groups(saved)
        statistics.average_into_model(statistics.rows, 0)
        for module in batch_norms(model):
            assert module.running_mean is not None and (module.running_mean == 1.5).all()


@pytest.mark.parametrize(("batch", "group"), [(24, 8), (32, 4)])
def test_frozen_statistics_stay_to_the_bit(batch: int, group: int) -> None:
    """With 3 and 8 groups, whose float32 mean may differ from the equal numbers that it is of. Reference: the net before."""
    model, generator = net(torch.float32), torch.Generator().manual_seed(2)
    for module in batch_norms(model):
        assert module.running_mean is not None and module.running_var is not None
        module.running_mean.normal_(generator=generator)
        module.running_var.uniform_(0.1, 3, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    equal = torch.cat(list(before.values()))
    assert not torch.equal(equal.repeat(batch // group, 1).mean(dim=0), equal), "the case shows something"
    step = step_of(model, plan_groups(batch, group, 0, 1), batch=batch, reduction="auto", freeze_bn=True, ema_decay=0.9)
    assert step.average is not None
    images, labels = batches()[0]
    step.step(images[:batch], labels[:batch], 0.1)
    for net_of, statistics in ((step.model, step.statistics), (step.average.model, step.average.statistics)):
        saved = statistics.gather_into_model(1)
        state = net_of.state_dict()
        assert all(torch.equal(state[name], value) for name, value in before.items())
        other = GroupStatistics(net_of, plan_groups(batch, "rank", 0, 1), frozen=True)  # another number of groups
        other.load_all_groups(saved)
        other.gather_into_model(1)
        assert all(torch.equal(state[name], value) for name, value in before.items())
    step.close()


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_recomputed_statistics_are_plain_averages() -> None:
    """Reference: the first layer's means and variances of each group, computed from the images; the rest stays."""
    model = net(torch.float64)
    step = step_of(model, plan_groups(BATCH, GROUP, 0, 1))
    before = step.statistics.all_groups()
    images, _ = batches(torch.float64)[0]
    statistics = step.batch_statistics(images)
    outputs = model.conv1(images.permute(0, 3, 1, 2)).detach().unflatten(0, (-1, GROUP))
    channels = outputs.shape[2]
    torch.testing.assert_close(statistics[:, :channels], outputs.mean(dim=(1, 3, 4)))
    torch.testing.assert_close(statistics[:, channels : 2 * channels], outputs.transpose(1, 2).flatten(2).var(dim=2))
    torch.testing.assert_close(step.statistics.all_groups(), before)
    assert model.bn1.momentum == 0.1
    step.close()


def train_around_a_bad_batch(world: World, bad: int | None) -> tuple[np.ndarray, dict]:
    """As `train`; the mini-batch before number `bad` is one whose last image holds a NaN."""
    plan = plan_groups(BATCH, GROUP, world.rank, world.size)
    # ema_decay: below what the first updates use, so that the count of updates plays no part.
    step = step_of(net(torch.float32), plan, world, ema_decay=0.05)
    average = step.average
    assert average is not None
    for number, (images, labels) in enumerate(batches()):
        if number == bad:
            poisoned = images.clone()
            poisoned[-1, 0, 0, 0] = float("nan")
            step.step(poisoned[plan.rows], labels[plan.rows], 0.1)
        step.step(images[plan.rows], labels[plan.rows], 0.1)
    step.statistics.average_into_model(step.statistics.all_groups(), STEPS)
    average.statistics.average_into_model(average.statistics.all_groups(), STEPS)
    tensors = step.model.state_dict() | {f"ema.{name}": value for name, value in average.model.state_dict().items()}
    state = {name: value.detach().numpy().copy() for name, value in tensors.items()}
    metrics = step.take_metrics()
    step.close()
    return metrics, state


@pytest.mark.parametrize(("size", "bad"), [(1, 0), (2, 3)])
def test_a_poisoned_update_leaves_no_trace(size: int, bad: int) -> None:
    """Reference: the same run without that mini-batch; on two ranks only the second one's rows are bad."""
    _, expected = alone(train_around_a_bad_batch, None)
    for metrics, state in run_ranks(size, train_around_a_bad_batch, bad):
        assert metrics[:, 2].tolist() == [float(number != bad) for number in range(STEPS + 1)]
        for name in expected:
            np.testing.assert_array_equal(state[name], expected[name], err_msg=name)
