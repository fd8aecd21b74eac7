"""What a run is: its typed config, from one YAML file and command-line overrides (`pipeline.run.options` reads them).

Each section's dataclass stands beside the code that it configures; this module puts them together, refuses impossible
values, and says which values decide what the run computes (`trajectory`).

Units: iterations count updates; learning rates are per update; errors and thresholds are percent; sizes are pixels.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.base.checkout import DATA
from pipeline.base.command import UserError, check_at_least, check_without_secrets
from pipeline.base.output import shown
from pipeline.data.augment import AugmentConfig
from pipeline.data.conventions import Origin
from pipeline.data.dataset import Subtracted
from pipeline.data.loader import LoaderConfig
from pipeline.data.mixing import MixingConfig
from pipeline.data.storage import SECRETS_OF_STORAGE
from pipeline.evaluation.config import EvaluationConfig
from pipeline.models.architecture import parse_arch
from pipeline.tracking import TrackingConfig
from pipeline.tracking.config import SECRETS_OF_MLFLOW
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.compiling import CompileBy
from pipeline.training.loss import Loss
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.precision import Precision
from pipeline.training.reduction import choose_mode
from pipeline.training.schedule import ScheduleConfig
from pipeline.training.step import StepConfig

# Version of what a run computes: the order, the crops, flips and colours, the initial weights, the arithmetic of an update.
# Raise it by one with every change that alters the results of a run by more than rounding; tests/test_golden.py fails until
# then. Do not raise it for speed, for messages, or for a new option whose default leaves runs as they are. Only code of the
# same version continues a run (folder.check_same): otherwise its two parts would come from different computations.
TRAJECTORY = 1

# Metadata of the keys that may change between the attempts of one run, because they leave what it computes as it is. The
# dataset counts by its content, not by its place; `threads`, `compile`, `reduction` and the choice of a GPU's kernels change
# the last bits only.
SURROUNDINGS = {"surroundings": True}

# How weights are found in what `init` names. Once what was taken has a hash (init_sha256), that hash says all of them.
HOW_TAKEN = ("init_weights", "init_exclude", "init_preprocessing")

# Keys without a meaning where a run starts from random weights.
ABOUT_INIT = (*HOW_TAKEN, "init_sha256", "freeze_bn")

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 200  # letters: file systems take 255, and some files have the run's name and more


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run is a pure function of (dataset, config, seed); the defaults are the paper's ImageNet recipe (section 3.4).

    They are the recipe to the letter, which configs/imagenet.yaml speeds up (`precision`, `compile`). No value is chosen by
    the device that a run meets: a run that goes on elsewhere would go on as another one.

    Args:
        arch: the net, one of those that pipeline.models.architecture knows; --help lists them.
        data: the dataset folder, or its URL.
        name: the run's name; ARCH-seedN where none is given.
        runs: the folder that holds the run folders.
        seed: random seed of initial weights, order and augmentation.
        init: what the run starts from in place of random weights: a run folder (its newest checkpoint), a checkpoint of a
            run, a file of weights in torchvision's names (.pt, .pth, .ckpt, .safetensors), or torchvision:NET. The classifier
            is left out where the classes differ. Only weights are taken: the run begins at iteration 0, with a schedule of
            its own.
        init_weights: which weights of a run: final (the default), recomputed-bn or ema. Of a file that holds several sets:
            the name of one.
        init_exclude: layers that are not taken but start at random, by name, such as ["fc"] or ["layer4.*"].
        init_preprocessing: the images that the weights of a file have learned from, by the name of who trained them; of a run
            and of a file that pipeline.export wrote it is known. "ours": RGB, 0..255, minus the mean.
        init_sha256: the SHA-256 of what was taken from init, noted when the run starts. The weights count by it, not by their
            place, nor by the three keys above. Where you give it, other weights are refused.
        freeze_bn: whether batch normalization goes on with the statistics, scales and shifts of init, unchanged by training;
            recompute_bn_images then recomputes nothing.
        shortcut: A zero-padded identity, B projection where dimensions change, C projection everywhere; default: the paper's.
        stride: which convolution of a downsampling bottleneck has stride 2: the first 1x1 (paper) or the 3x3 (v1.5).
        iterations: how many updates the run makes.
        batch: images in a mini-batch, over all ranks together.
        batch_scale: a record of the factor by which --scale-batch multiplied the recipe's batch. The value changes nothing.
        bn_group: how many images batch normalization computes its statistics over; `rank` is a rank's share of the batch.
        shuffle_block: samples that stay neighbours when the training set is shuffled, for storage with slow random reads.
        reduction: tree sums gradients in one fixed binary tree: the same bits on 1, 2, 4 ... ranks up to batch / bn_group;
            allreduce leaves the order to the backend; auto is tree where the number of ranks allows it, however many they
            are.
        gradient_compression: bf16 rounds gradients to bfloat16 where they travel between ranks, which halves the traffic and
            makes the weights depend on the number of ranks; reduction is then allreduce.
        subtract: mean-image is subtracted pixel by pixel from images of its size, as in the paper, and its mean colour from
            others; mean-colour is subtracted from all, for a run whose val images have another size than its training images.
        recompute_bn_images: training images over which BN mean and variance are recomputed as a plain average after training
            (paper 3.4 and the authors' README), rounded up to whole mini-batches; 0 recomputes nothing.
        loss: cross-entropy of the softmax, as in the paper; or binary-cross-entropy, where each class is a yes or no of its
            own, by its sigmoid, averaged over the classes.
        label_smoothing: share of the target that is spread evenly over all classes, from 0 to below 1; 0 in the paper. The
            reported training loss stays that with the labels.
        target_threshold: with binary-cross-entropy, a class with more than this share of the target counts as a yes, others
            as a no: 0.2 of images that are mixed lets both classes count. Left out, the share itself is the target.
        ema_decay: decay, per update, of the exponential moving average of the weights, from 0 to below 1, such as 0.9998. The
            average is evaluated and saved beside the weights. 0 keeps no average, as in the paper.
        on_nonfinite: what a NaN or infinite gradient does, besides being recorded with its samples: stop the run, or skip
            that update.
        precision: float32, or bf16 autocast.
        compile: whether torch.compile compiles the net for training. Where compiling fails, a warning says why, and training
            goes on uncompiled, with other last bits.
        compile_by: stages compiles each stage of the net by itself, so that the gradients of the last stages travel between
            ranks while those of the first are computed; net compiles one graph, whose gradients all travel at the end, and
            which took 25% less CPU time for ResNet-20 in bf16.
        deterministic: whether a GPU computes the same bits in every attempt, as a CPU always does. It takes slower
            convolutions and reductions than the fastest; how much slower was not measured. No GPU has run it yet.
        cudnn_benchmark: whether a GPU times cuDNN's convolutions at the first update and takes the fastest: the last bits then
            depend on that timing, and every crop size is timed anew. Excludes deterministic. No GPU has run it yet.
        cuda_graph: whether GPUs replay each update as CUDA graphs. Useful only where launching the kernels takes longer than
            running them: for small nets (CIFAR), and for few images on each of several GPUs. Several ranks then sum their
            gradients after the backward pass instead of during it, with the same bits where reduction is tree.
            Normalization groups must not span ranks. CPUs train without graphs. No GPU has run it yet.
        device: auto, cpu or cuda.
        threads: CPU threads of a rank; left out, its share of the host's cores. They decide the last bits of a CPU run.
        profile: how many updates torch's profiler traces on rank 0, after 10 to warm up; the trace goes into profile/ of the
            run folder, the largest operators onto the terminal. 0 traces none. It changes nothing that is computed.
        timeout_seconds: how long a rank may stand still, or wait for another rank, before the job ends and names the rank.
    """

    arch: str = "resnet50"
    data: str = field(default=DATA, metadata=SURROUNDINGS)
    name: str | None = field(default=None, metadata=SURROUNDINGS)
    runs: str = field(default="runs", metadata=SURROUNDINGS)
    seed: int = 0
    init: str | None = field(default=None, metadata=SURROUNDINGS)
    init_weights: str | None = None
    init_exclude: tuple[str, ...] = ()
    init_preprocessing: Origin | None = None
    init_sha256: str | None = None
    freeze_bn: bool = False
    shortcut: Literal["default", "A", "B", "C"] = "default"
    stride: Literal["paper", "v1.5"] = "paper"
    iterations: int = field(default=600_000, metadata={"unit": "iterations"})
    batch: int = 256
    batch_scale: float = field(default=1.0, metadata=SURROUNDINGS)
    bn_group: int | Literal["rank"] = 32
    shuffle_block: int = 1
    reduction: Literal["auto", "tree", "allreduce"] = field(default="auto", metadata=SURROUNDINGS)
    gradient_compression: Literal["none", "bf16"] = "none"
    subtract: Subtracted = "mean-image"
    recompute_bn_images: int = field(default=51_200, metadata={"unit": "images"})
    loss: Loss = "cross-entropy"
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    ema_decay: float = 0.0
    on_nonfinite: Literal["stop", "skip"] = field(default="stop", metadata=SURROUNDINGS)
    precision: Precision = "float32"
    compile: bool = field(default=False, metadata=SURROUNDINGS)
    compile_by: CompileBy = field(default="net", metadata=SURROUNDINGS)
    deterministic: bool = field(default=False, metadata=SURROUNDINGS)
    cudnn_benchmark: bool = field(default=False, metadata=SURROUNDINGS)
    cuda_graph: bool = field(default=False, metadata=SURROUNDINGS)
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=SURROUNDINGS)
    threads: int | None = field(default=None, metadata=SURROUNDINGS)
    profile: int = field(default=0, metadata=SURROUNDINGS)
    timeout_seconds: float = field(default=600.0, metadata=SURROUNDINGS)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=SURROUNDINGS)
    loader: LoaderConfig = field(default_factory=LoaderConfig, metadata=SURROUNDINGS)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=SURROUNDINGS)

    def __post_init__(self) -> None:
        parse_arch(self.arch)
        check_at_least(1, self, "iterations", "batch", "shuffle_block", "threads")
        check_at_least(0, self, "seed", "recompute_bn_images", "profile")
        if self.seed >= 2**64:
            raise UserError(f"seed is {self.seed}: it must be less than 2^64")
        if not self.timeout_seconds > 0:
            raise UserError(f"timeout_seconds is {self.timeout_seconds}: it must be above 0, such as 600")
        self._check_batch()
        choose_mode(self.reduction, 1, 1, self.gradient_compression)  # raises where they exclude each other
        for key in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: it must be at least 0 and less than 1")
        self._check_target_threshold()
        if self.deterministic and self.cudnn_benchmark:
            raise UserError(
                "deterministic and cudnn_benchmark exclude each other, because the fastest convolutions may be others in the "
                "next attempt: leave one of them false"
            )
        self._check_init()
        self._check_places()

    def _check_batch(self) -> None:
        """Raise UserError where the mini-batch cannot be divided as normalization and mixing ask."""
        if self.bn_group != "rank" and (self.bn_group < 2 or self.batch % self.bn_group):
            raise UserError(
                f"bn_group {self.bn_group} does not divide batch {self.batch}: choose a bn_group of at least 2 that does"
            )
        if self.mixing.on and self.batch % 2:
            raise UserError(f"batch is {self.batch}: mixing takes images in pairs, so it must be even")

    def _check_target_threshold(self) -> None:
        """Raise UserError for a threshold out of bounds, or one that the loss has no use for."""
        if self.target_threshold is None:
            return
        if not 0 <= self.target_threshold < 1:
            raise UserError(
                f"target_threshold is {self.target_threshold}: it must be at least 0 and less than 1, such as 0.2, or null"
            )
        if self.loss == "cross-entropy":
            raise UserError(
                "target_threshold makes yes or no of a class's share, which cross-entropy has no use for: "
                "use loss binary-cross-entropy, or leave target_threshold out"
            )

    def _check_places(self) -> None:
        """Raise UserError for a run name or a path that no file system takes.

        The name becomes a folder, a job name and part of a shell script: plain characters only.
        """
        if not RUN_NAME.fullmatch(self.run_name):
            raise UserError(
                f"the run name '{self.run_name}' may hold only letters, digits and . _ -: choose another --name"
            )
        if len(self.run_name) > LONGEST_NAME:
            raise UserError(
                f"the run name is {len(self.run_name)} letters long ({self.run_name[:20]}...): choose a --name of at most "
                f"{LONGEST_NAME}"
            )
        for key in ("data", "runs", "init"):
            if "\0" in (getattr(self, key) or ""):
                raise UserError(f"{key} holds a character that no file's name may hold (NUL): give another --{key}")

    def _check_init(self) -> None:
        """Raise UserError for keys that are about `init` where nothing is to be taken."""
        if self.init == "":
            raise UserError("init is empty: name a run folder, a checkpoint or a file, or leave init out")
        given = [key for key in ABOUT_INIT if getattr(self, key)]
        if given and self.init is None:
            raise UserError(
                f"{given[0]} is about the weights that a run starts from, and init names none: give --init RUN, a checkpoint "
                f"or a file, or leave {given[0]} out"
            )
        if self.init_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.init_sha256):
            raise UserError(
                f"init_sha256 is '{self.init_sha256}': it must be a SHA-256, 64 hexadecimal digits, or be left out"
            )

    @property
    def recomputes_bn(self) -> bool:
        """Whether BN statistics are recomputed at the end of the training."""
        return bool(self.recompute_bn_images) and not self.freeze_bn

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
    def compile_crop(self) -> int | None:
        """Side of the training images in pixels where the net is to be compiled for them."""
        return self.augment.crop if self.compile else None

    @property
    def step(self) -> StepConfig:
        """What the training step reads: the values of the same names."""
        return StepConfig(**{key.name: getattr(self, key.name) for key in dataclasses.fields(StepConfig)})


def trajectory(config: Config) -> dict[str, Any]:
    """The values that decide what the run computes, as nested dicts of plain values. A run continues only with equal ones.

    Of a run that has not started yet, the name of the weights to start from, and how they are found in it, stand in for their
    content (`init_sha256`).
    """
    values = to_plain(config)
    for key in dataclasses.fields(config):
        if key.metadata == SURROUNDINGS:
            del values[key.name]
    if config.init_sha256 is not None:
        for name in HOW_TAKEN:
            del values[name]
    elif config.init is not None:
        values["init"] = config.init
    if config.schedule.start_lr is not None:  # log points decide when it ends
        values["tracking"] = {"log_every": config.tracking.log_every}
    return values


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """(old value, new value) of every leaf in which two nested dicts differ, by dotted key."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`changes` in words: `key: old -> new`."""
    return [f"{key}: {before} -> {after}" for key, (before, after) in changes(old, new).items()]


def departures(old: Config, new: Config) -> list[str]:
    """How the trajectories of a run's config and of one that is to continue it differ, in words.

    Weights to start from that nobody has read yet (`init` without `init_sha256`) pass for those of the run, if it has any.
    """
    before, now = trajectory(old), trajectory(new)
    for values in (before, now):
        for name in ("init", *HOW_TAKEN, "init_sha256"):
            values.pop(name, None)
    unread = new.init is not None and new.init_sha256 is None
    same = old.init_sha256 is not None if unread else old.init_sha256 == new.init_sha256
    others = [] if same else [f"init: {_start_in_words(old)} -> {_start_in_words(new)}"]
    return [*others, *differences(before, now)]


def _start_in_words(config: Config) -> str:
    digest = f" (SHA-256 {config.init_sha256[:12]}...)" if config.init_sha256 else ""
    return f"{config.init}{digest}" if config.init else "random weights"


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts of values that YAML and JSON have (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def check_secrets(config: Config) -> None:
    """Raise UserError where a config that a user gives has an address with a password, which would become part of the run."""
    check_without_secrets("data", config.data, SECRETS_OF_STORAGE)
    check_without_secrets("tracking.uri", config.tracking.uri, SECRETS_OF_MLFLOW)


def check(config: Config) -> None:
    """Raise UserError for sections that do not fit together; each section has checked its own values."""
    for key in ("runs", "data", "init"):
        if (place := str(getattr(config, key) or "")) != place.encode(errors="replace").decode():
            raise UserError(
                f"{key} is '{shown(place)}', which is not UTF-8, as run folders note names: rename that folder"
            )
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
