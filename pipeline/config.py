"""The one setting file a user edits: a typed, strict YAML config with command-line overrides.

Each section's dataclass stands beside the code it configures; this module composes them, reads files and options into
them, refuses what does not fit, and says which values make the run what it is (`trajectory`).

Units: iterations count updates; learning rates are per update; errors and thresholds are percent; sizes are pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import jsonargparse
import yaml

from pipeline.command import UserError, nearest
from pipeline.data.augment import AugmentConfig
from pipeline.data.loader import LoaderConfig
from pipeline.files import read_yaml
from pipeline.models.resnet import parse_arch
from pipeline.scaling import read_factor, scale_batch
from pipeline.tracking import TrackingConfig
from pipeline.training.checkpoint import CheckpointConfig
from pipeline.training.optimizer import OptimizerConfig
from pipeline.training.reduction import choose_mode
from pipeline.training.schedule import ScheduleConfig


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


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose help opens with its sentence and example."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        _, rest = super().format_help(formatter).split("\noptions:\n", 1)
        return f"{self.description}\n\noptions:\n{rest}"


def parser(description: str, example: str) -> jsonargparse.ArgumentParser:
    """A command-line parser with `--config FILE` and every value of `Config` as an option; add the command's own to it."""
    made = _Parser(
        description=f"{description}\n\nexample:\n  {example}",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    made.add_argument("--config", action="config", help="YAML file of the values below; later options override it")
    made.add_class_arguments(Config, None)
    made.add_argument(
        "--scale-batch",
        type=str,
        metavar="F",
        help="weak scaling: F times the batch and the learning rate, linear warm-up, 1/F of the iterations: the same "
        "images in all; applied last, to the values as they are resolved",
    )
    made.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    return made


def parse(made: jsonargparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, jsonargparse.Namespace]:
    """Read options into (config, the command's own options). Raises UserError for whatever does not fit."""
    argv = [_config_spelling(word) for word in argv]
    for file in _config_files(argv):
        check_keys(file)
    try:
        options = made.parse_args(argv)
        instance = made.instantiate(options)
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_sentence(str(error), made)) from None
    names = [one.name for one in dataclasses.fields(Config)]
    config = Config(**{name: instance.pop(name) for name in names})
    if (factor := instance.pop("scale_batch")) is not None:
        config = scale_batch(config, read_factor(factor))
    check(config)
    return config, instance


def load(path: Path) -> Config:
    """Read a config file alone (a run's config.yaml). Raises UserError as `parse` does."""
    return parse(_file_parser(), ["--config", str(path)])[0]


@cache  # making one takes a third of a second
def _file_parser() -> jsonargparse.ArgumentParser:
    return parser("Reads a config.", "none")


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


def check_keys(path: Path) -> None:
    """Raise UserError where a YAML file is not readable or holds a key that the config does not know."""
    values = read_yaml(path, "config file")
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} holds no 'key: value' lines: see configs/ for examples")
    _check_mapping(values, Config, str(path), "")


def _check_mapping(values: Mapping[str, Any], kind: type, place: str, prefix: str) -> None:
    types = get_type_hints(kind)
    valid = [one.name for one in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in valid:
            raise UserError(f"unknown key '{prefix}{key}' in {place}: {nearest(str(key), valid)}")
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types[key]):
            _check_mapping(value, types[key], place, f"{prefix}{key}.")
        for number, item in enumerate(value if isinstance(value, list) else ()):
            (kind_of_item, *_) = get_args(types[key]) or (None,)
            if isinstance(item, Mapping) and dataclasses.is_dataclass(kind_of_item):
                assert isinstance(kind_of_item, type)
                _check_mapping(item, kind_of_item, place, f"{prefix}{key}[{number}].")


def key_names(kind: type = Config, prefix: str = "") -> list[str]:
    types, found = get_type_hints(kind), []
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[one.name]):
            found += key_names(types[one.name], f"{prefix}{one.name}.")
        found.append(prefix + one.name)
    return found


def _config_spelling(word: str) -> str:
    """Config keys may be typed with hyphens, as other options are: --bn-group is --bn_group."""
    option, equals, value = word.partition("=")
    spelled = option[2:].replace("-", "_") if option.startswith("--") else ""
    return f"--{spelled}{equals}{value}" if spelled in key_names() else word


def _config_files(argv: Sequence[str]) -> list[Path]:
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    files += [after for word, after in itertools.pairwise(argv) if word == "--config"]
    return [Path(file) for file in files]


def _one_sentence(message: str, made: jsonargparse.ArgumentParser) -> str:
    """jsonargparse's message as one sentence with a remedy."""
    if message.startswith("unrecognized arguments:"):
        word = message.split(":", 1)[1].split()[0]
        if not word.startswith("--"):
            return f"'{word}' was not expected on the command line: options start with '--' (see --help)"
        valid = [option for action in made._actions for option in action.option_strings if option.startswith("--")]
        return f"{word.partition('=')[0]} is not an option: {nearest(word.partition('=')[0], valid)}"
    if found := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        reason = re.sub(r"<class '(\w+)'>", r"\1", " ".join(found[2].split())).replace("typing.", "")
        reason = re.sub(r"Problem with given class_path '\S+': ", "one of its items: ", reason)
        return f"{found[1]} does not fit: {reason.rstrip('.')}"
    return " ".join(message.split())
