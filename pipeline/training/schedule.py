"""The learning rate as a small state machine: iteration and val errors in, learning rate out; its state is checkpointed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.base.command import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves.

    Args:
        kind: plateau drops when the val error stops improving (paper 3.4); steps drops at given iterations (paper 4.2);
            cosine falls to zero over the whole run.
        factor: what a drop multiplies the learning rate by; 0.1 in the paper.
        steps: the iterations at which `steps` drops, in rising order; 32000 and 48000 for CIFAR-10 (paper 4.2).
        patience: `plateau` drops after this many consecutive evaluations without improvement; the paper does not give it.
        threshold: by how many percentage points the val top-1 error must fall to count as an improvement.
        drops: `plateau` drops at most this often; twice in the paper's Fig. 4.
        warmup_iterations: over so many iterations the learning rate rises linearly from 1/warmup_iterations of its value.
        start_lr: the learning rate until the training error first falls below `start_until_error`; 0.01 for ResNet-110
            (paper 4.2). Left out: `lr` from the start.
        start_until_error: the training top-1 error of one log interval, percent, below which `start_lr` ends; 80 in the
            paper.
    """

    kind: Literal["plateau", "steps", "cosine"] = "plateau"
    factor: float = 0.1
    steps: tuple[int, ...] = field(default=(), metadata={"unit": "iterations"})
    patience: int = 8
    threshold: float = 0.1
    drops: int = 2
    warmup_iterations: int = field(default=0, metadata={"unit": "iterations"})
    start_lr: float | None = None
    start_until_error: float = 80.0

    def __post_init__(self) -> None:
        if self.kind == "steps" and (not self.steps or list(self.steps) != sorted(set(self.steps))):
            raise UserError(
                f"schedule.steps is {list(self.steps)}: give iterations in rising order, such as [32000, 48000]"
            )
        if not 0 < self.factor < 1:
            raise UserError(f"schedule.factor is {self.factor}: it must lie between 0 and 1, such as 0.1")
        if self.start_lr is not None and not 0 < self.start_lr < math.inf:
            raise UserError(f"schedule.start_lr is {self.start_lr}: it must be above 0, such as 0.01, or null")
        if self.patience < 1 or self.warmup_iterations < 0 or self.drops < 0:
            raise UserError(
                "schedule.patience must be at least 1, schedule.warmup_iterations and schedule.drops at least 0"
            )


@dataclass(kw_only=True)
class ScheduleState:
    """What the learning rate depends on besides the iteration; checkpointed."""

    best_error: float = math.inf  # lowest val top-1 error seen, percent
    stale_evaluations: int = 0  # evaluations since then
    drops: int = 0  # of `plateau`
    started: bool = False  # start_lr is over


class Schedule:
    """Learning rate `lr(iteration)` for a run of `iterations` with base learning rate `base_lr`."""

    def __init__(self, config: ScheduleConfig, base_lr: float, iterations: int) -> None:
        self.config, self.base_lr, self.iterations = config, base_lr, iterations
        self.state = ScheduleState(started=config.start_lr is None)

    def lr(self, iteration: int) -> float:
        """The learning rate of update number `iteration`, counted from 0."""
        config = self.config
        if not self.state.started:
            assert config.start_lr is not None
            return config.start_lr
        lr = self.base_lr * self._decay(iteration)
        if iteration < config.warmup_iterations:
            lr *= (iteration + 1) / config.warmup_iterations
        return lr

    def _decay(self, iteration: int) -> float:
        config = self.config
        if config.kind == "cosine":
            span = max(1, self.iterations - config.warmup_iterations)
            return 0.5 * (1 + math.cos(math.pi * max(0, iteration - config.warmup_iterations) / span))
        drops = self.state.drops if config.kind == "plateau" else sum(iteration >= step for step in config.steps)
        return config.factor**drops

    def observe_train_error(self, error: float) -> None:
        """Take the training top-1 error (percent) of one log interval, which may end `start_lr`."""
        if error < self.config.start_until_error:
            self.state.started = True

    def observe_val_error(self, error: float) -> None:
        """Take the val top-1 error (percent) of one evaluation, by which the plateau rule may drop the learning rate."""
        config, state = self.config, self.state
        if error < state.best_error - config.threshold:
            state.best_error, state.stale_evaluations = error, 0
            return
        state.stale_evaluations += 1
        if config.kind == "plateau" and state.drops < config.drops and state.stale_evaluations >= config.patience:
            state.drops, state.stale_evaluations = state.drops + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = ScheduleState(**state)
