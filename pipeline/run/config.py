"""What a run is: its typed config, which one YAML file and command-line overrides give (`pipeline.run.options` reads them).

Each section's dataclass stands beside the code it configures; this module composes them, refuses values that cannot be,
and says which of them make the run what it is (`trajectory`).

Units: iterations count updates; learning rates are per update; errors and thresholds are percent; sizes are pixels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.base.command import UserError
from pipeline.data.augment import AugmentConfig
from pipeline.data.loader import LoaderConfig
from pipeline.models.resnet import parse_arch
from pipeline.tracking import TrackingConfig
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.reduction import choose_mode
from pipeline.training.schedule import ScheduleConfig
from pipeline.training.step import StepConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The val errors during training: centre crop (paper: Fig. 4, bold), every image counted once.

    Args:
        every: iterations between evaluations.
        short_side: the image's shorter side is resized to this many pixels before the centre crop; 256 in the paper.
        crop: side of the centre crop, pixels; that of training (`augment.crop`) where null, as in the paper.
    """

    every: int = 5000
    short_side: int = 256
    crop: int | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run is a pure function of (dataset, config, seed); the defaults are the paper's ImageNet recipe (section 3.4).

    Args:
        arch: resnet18/34/50/101/152, plain18/34 (ImageNet); resnet20/32/44/56/110/1202 and any 6n+2, plain20... (CIFAR).
        data: the dataset folder.
        name: the run's name; ARCH-seedN where null.
        runs: the folder that holds the run folders.
        seed: of initialisation, order and augmentation.
        shortcut: A zero-padded identity, B projection where dimensions change, C projection everywhere; default: the paper's.
        stride: where a downsampling bottleneck strides: paper (first 1x1) or v1.5 (the 3x3).
        iterations: updates in all.
        batch: images of a mini-batch, over all ranks together.
        batch_scale: a record: by how much --scale-batch has multiplied the recipe's own batch. It changes nothing by itself.
        bn_group: images that batch normalization takes its statistics over; `rank` is a rank's whole share of the batch.
        shuffle_block: samples that stay neighbours when the training set is shuffled, for storage that hates random reads.
        reduction: tree sums gradients in one fixed binary tree: the same bits on 1, 2, 4 ... ranks up to batch / bn_group;
            allreduce leaves the order to the backend; auto is tree where the number of ranks allows it.
        gradient_compression: bf16 rounds gradients to bfloat16 where they travel between ranks, which halves the traffic and
            makes the weights depend on the number of ranks; reduction is then allreduce.
        recompute_bn_images: training images over which BN mean and variance are recomputed as a plain average after training
            (paper 3.4 and the authors' README); rounded up to whole mini-batches; 0 for not at all.
        label_smoothing: share of the target that goes to all classes alike, 0 to below 1; 0 in the paper. The reported
            training loss stays the cross-entropy with the labels themselves.
        ema_decay: of the exponential moving average of the weights, for each update, 0 to below 1; such as 0.9998. It is
            evaluated and kept beside the weights themselves. 0: none, as in the paper.
        on_nonfinite: what a gradient that is not a number does, besides being recorded with its samples: stop the run, or
            skip that update.
        precision: float32, or bf16 autocast.
        compile: whether the training step's net goes through torch.compile; where that fails, training goes on without,
            says why, and differs in the last bits.
        cuda_graph: whether a single GPU replays each update as one CUDA graph, to the same bits: for nets so small that
            launching their kernels takes longer than running them (CIFAR). It needs a learning rate that stays for many
            updates; CPUs and several ranks train without. No GPU has run it yet.
        device: auto, cpu or cuda.
        threads: CPU threads per rank; the host's cores divided among its ranks where null. Part of a CPU run's last bits.
        timeout_seconds: how long a rank may stand still, or wait for another, before the job ends and names it.
    """

    arch: str = "resnet50"
    data: str = "data/imagenet"
    name: str | None = None
    runs: str = "runs"
    seed: int = 0
    shortcut: Literal["default", "A", "B", "C"] = "default"
    stride: Literal["paper", "v1.5"] = "paper"
    iterations: int = 600_000
    batch: int = 256
    batch_scale: float = 1.0
    bn_group: int | Literal["rank"] = 32
    shuffle_block: int = 1
    reduction: Literal["auto", "tree", "allreduce"] = "auto"
    gradient_compression: Literal["none", "bf16"] = "none"
    recompute_bn_images: int = 51_200
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    cuda_graph: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    timeout_seconds: float = 600.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def run_name(self) -> str:
        return self.name or f"{self.arch}-seed{self.seed}"

    @property
    def test_crop(self) -> int:
        """Side of the centre crop of the val errors, pixels."""
        return self.evaluation.crop or self.augment.crop

    @property
    def run_folder(self) -> Path:
        return Path(self.runs) / self.run_name

    @property
    def step(self) -> StepConfig:
        """What the training step reads of these values."""
        return StepConfig(
            batch=self.batch,
            optimizer=self.optimizer,
            reduction=self.reduction,
            gradient_compression=self.gradient_compression,
            precision=self.precision,
            label_smoothing=self.label_smoothing,
            ema_decay=self.ema_decay,
            compile_crop=self.augment.crop if self.compile else None,
        )


# Version of what a run computes: the order, the crops, flips and colours, the initial weights, the arithmetic of an update.
# Raise it by one with every change that alters the results of a run by more than rounding; tests/test_golden.py fails until
# then. Do not raise it for speed, for messages, or for a new option whose default leaves runs as they are. Only code of the
# same version continues a run (run_folder.check_same): otherwise its two parts would come from different computations.
TRAJECTORY = 1

# What may change between the attempts of one run and leaves what it computes as it is; the dataset counts by content,
# not by place, and `threads`, `compile` and `reduction` reach the last bits only.
SURROUNDINGS = frozenset(
    ("data", "name", "runs", "device", "threads", "compile", "timeout_seconds", "reduction", "on_nonfinite")
)
SURROUNDINGS |= {"cuda_graph", "checkpoint", "loader", "tracking", "batch_scale"}


def trajectory(config: Config) -> dict[str, Any]:
    """The values that make the run what it is, as a nested dict of plain values; continuing a run needs them equal."""
    values = {key: value for key, value in to_plain(config).items() if key not in SURROUNDINGS}
    if config.schedule.start_lr is not None:  # its end is decided at log points
        values["tracking"] = {"log_every": config.tracking.log_every}
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two nested dicts differ."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts of what YAML and JSON hold (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_plain(config), sort_keys=False)


RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LEAST = {  # whole numbers, and the least that each can be
    "iterations": 1,
    "batch": 1,
    "shuffle_block": 1,
    "threads": 1,
    "seed": 0,
    "recompute_bn_images": 0,
    "evaluation.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every": 1,
    "tracking.log_every": 1,
}


def check(config: Config) -> None:
    """Raise UserError for values that cannot be: an unknown net, a batch that its groups do not divide, a bad run name."""
    parse_arch(config.arch)
    for name, least in LEAST.items():
        value = attrgetter(name)(config)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    if config.seed >= 2**64:
        raise UserError(f"seed is {config.seed}: it must be less than 2^64")
    if not config.timeout_seconds > 0:
        raise UserError(f"timeout_seconds is {config.timeout_seconds}: it must be above 0, such as 600")
    if config.bn_group != "rank" and (config.bn_group < 2 or config.batch % config.bn_group):
        raise UserError(
            f"bn_group {config.bn_group} does not divide batch {config.batch}: choose a bn_group of at least 2 that does"
        )
    if config.reduction == "tree":
        choose_mode(config.reduction, 1, 1, config.gradient_compression)  # raises where they exclude each other
    for name in ("label_smoothing", "ema_decay"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}: it must be at least 0 and less than 1")
    if not 0 < config.test_crop <= config.evaluation.short_side:
        raise UserError(
            f"evaluation: a centre crop of {config.test_crop} pixels does not fit evaluation.short_side "
            f"{config.evaluation.short_side}: make that larger, or set evaluation.crop"
        )
    if config.augment.stages and config.augment.stages[-1].until >= config.iterations:
        raise UserError(
            f"augment.stages end at iteration {config.augment.stages[-1].until}, the run at {config.iterations}: the last "
            "stage must end before the run does, which ends with augment.crop and augment.short_side"
        )
    # The name becomes a folder, a job name and part of a shell script: plain characters only.
    if not RUN_NAME.fullmatch(config.run_name):
        raise UserError(
            f"the run name '{config.run_name}' may hold only letters, digits and . _ -: choose another --name"
        )
    config.optimizer.check()
    config.schedule.check()
