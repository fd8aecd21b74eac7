"""Learning rates against values written out by hand and against torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.base.command import UserError
from pipeline.training.schedule import Schedule, ScheduleConfig


def test_steps_are_cifars() -> None:
    """Paper 4.2: 0.1, divided by 10 at 32k and 48k iterations."""
    schedule = Schedule(ScheduleConfig(kind="steps", steps=(32_000, 48_000)), 0.1, 64_000)
    expected = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    for iteration, lr in expected.items():
        assert schedule.lr(iteration) == pytest.approx(lr)


FALLING = [60, 50, 45, 44.95, 44.93, 44.9, 40, 39.95, 39.94, 39.93, 39.92, 39.91, 39.9, 20]
# Below the error before, and not below the best one: 52, 51 and 50.5 are no improvements.
RISING = [60, 50, 55, 52, 51, 50.5, 49, 53, 49.5, 48, 50, 49, 48.5, 48.2, 52, 40]


@pytest.mark.parametrize("errors", [FALLING, RISING])
def test_plateau_agrees_with_torch(errors: list[float]) -> None:
    """Reference: ReduceLROnPlateau with the same rule (torch counts bad epochs one later: its patience is ours - 1)."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=2, threshold=0.1, threshold_mode="abs"
    )
    schedule = Schedule(ScheduleConfig(kind="plateau", patience=3, threshold=0.1, drops=9), 0.1, 100)
    rates = set()
    for error in errors:
        reference.step(error)
        schedule.observe_val_error(error)
        assert schedule.lr(0) == pytest.approx(optimizer.param_groups[0]["lr"])
        rates.add(round(schedule.lr(0), 9))
    assert len(rates) >= 3


def _lr_after(schedule: Schedule, error: float) -> float:
    schedule.observe_val_error(error)
    return schedule.lr(0)


def test_plateau_stops_dropping_and_survives_a_restart() -> None:
    config = ScheduleConfig(kind="plateau", patience=1, drops=2)
    schedule = Schedule(config, 0.1, 100)
    rates = [_lr_after(schedule, 50.0) for _ in range(3)]
    continued = Schedule(config, 0.1, 100)
    continued.load_state_dict(schedule.state_dict())
    rates += [_lr_after(continued, 50.0) for _ in range(3)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.001, 0.001, 0.001])
    assert continued.lr(99) == pytest.approx(0.001)


def test_cosine_and_warmup() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine", warmup_iterations=10), 0.4, 110)
    assert [schedule.lr(i) for i in (0, 4, 9)] == pytest.approx([0.04, 0.2, 0.4])
    assert schedule.lr(10) == pytest.approx(0.4)
    assert schedule.lr(60) == pytest.approx(0.2)
    assert schedule.lr(109) == pytest.approx(0.2 * (1 + math.cos(math.pi * 99 / 100)))


def test_start_of_resnet_110() -> None:
    """Paper 4.2: 0.01 until the training error is below 80%, then 0.1 and the steps as before."""
    config = ScheduleConfig(kind="steps", steps=(32_000, 48_000), start_lr=0.01)
    schedule = Schedule(config, 0.1, 64_000)
    schedule.observe_train_error(80.0)
    assert schedule.lr(100) == 0.01
    schedule.observe_train_error(79.9)
    schedule.observe_train_error(85.0)
    assert schedule.lr(400) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "values", [{"kind": "steps"}, {"kind": "steps", "steps": (2, 1)}, {"factor": 2.0}, {"patience": 0}]
)
def test_values_that_make_no_schedule(values: dict) -> None:
    with pytest.raises(UserError, match="schedule"):
        ScheduleConfig(**values)
