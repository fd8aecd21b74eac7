"""Trainings of seconds, on the digits: their config, what of them must be equal to the bit, and holding them up."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.data.augment import AugmentConfig, ResizeStage
from pipeline.data.loader import LoaderConfig
from pipeline.evaluation.config import EvaluationConfig
from pipeline.process.world import World
from pipeline.run.config import Config
from pipeline.tracking import TrackingConfig
from pipeline.training.checkpoint import CheckpointConfig, Checkpoints
from pipeline.training.schedule import ScheduleConfig
from tests.helpers import wait_for

ITERATIONS = 50
ONE_STAGE = AugmentConfig(short_side=(33, 38), crop=32)


def config_of(digits: Path, runs: Path, name: str) -> Config:
    return Config(
        arch="resnet8",
        data=str(digits),
        runs=str(runs),
        name=name,
        iterations=ITERATIONS,
        batch=32,
        bn_group=8,
        recompute_bn_images=256,
        label_smoothing=0.1,
        ema_decay=0.9,
        threads=1,
        augment=AugmentConfig(
            short_side=(33, 38), crop=32, stages=(ResizeStage(until=14, crop=24, short_side=(25, 29)),)
        ),
        schedule=ScheduleConfig(kind="steps", steps=(30,)),
        evaluation=EvaluationConfig(every=25, short_side=36),
        checkpoint=CheckpointConfig(every=10),
        loader=LoaderConfig(threads=1),
        tracking=TrackingConfig(log_every=5, mlflow=False),
    )


def train_rank(world: World, config: Config) -> int:
    from pipeline.train import train

    return train(config)


def refusal(world: World, config: Config) -> str:
    """The sentence that this rank's training is refused with."""
    from pipeline.train import train

    try:
        code = train(config)
    except UserError as refused:
        return str(refused)
    raise AssertionError(f"it was not refused and ended with {code}")


def hold_before(rank: int, folder: Path, iterations: tuple[int, ...]) -> None:
    """In a rank (tests/fleet.py's `sabotage`): say before each of these iterations that one is there, by the file
    at-ITERATION in `folder`, and wait for the file go-ITERATION.
    """
    from pipeline.loop.trainer import Trainer

    update = Trainer.update

    def held(trainer: Trainer, *batch: Any) -> None:
        if trainer.progress.iteration in iterations:
            (folder / f"at-{trainer.progress.iteration}").touch()
            wait_for((folder / f"go-{trainer.progress.iteration}").exists, "leave to go on", 120)
        update(trainer, *batch)

    Trainer.update = held  # type: ignore[method-assign, assignment]


def note_request(rank: int, folder: Path) -> None:
    """In a rank: the file asked-RANK in `folder` says that its handler has taken a request to stop."""
    from pipeline.process.stop import StopRequest

    receive = StopRequest._receive

    def noted(request: StopRequest, number: int, frame: FrameType | None) -> None:
        receive(request, number, frame)
        (folder / f"asked-{rank}").touch()

    StopRequest._receive = noted  # type: ignore[method-assign, assignment]


def weights(config: Config) -> str:
    """SHA-256 of weights, their moving average, statistics and momentum of the finished run."""
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration == config.iterations
    tensors = [*newest.state["model"].values(), *newest.state["model_recomputed_bn"].values()]
    tensors += [*newest.state["model_ema"].values(), newest.state["training"]["ema_statistics"]]
    optimizer = newest.state["training"]["optimizer"]
    tensors += [tensor for one in optimizer["state"].values() for tensor in one.values()]
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def series(config: Config) -> list[tuple]:
    """The metrics that do not depend on the clock, in order."""
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    names = ("kind", "iteration", "loss", "lr", "top1_error", "top5_error")
    return [tuple(line.get(name) for name in names) for line in lines]


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that failed as a user's mistake must."""
    assert result.returncode == EXIT_USER_ERROR, result.stderr
    assert "Traceback" not in result.stderr and "Fatal Python error" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
