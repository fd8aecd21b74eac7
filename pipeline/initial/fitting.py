"""Decides which of the weights at hand a net takes, and refuses those that are another net's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pipeline.base.command import UserError, nearest
from pipeline.data.dataset import Dataset
from pipeline.evaluation.foreign import shortcut_of
from pipeline.evaluation.nets import classifier_layers
from pipeline.evaluation.wrappings import FIRST
from pipeline.initial.folding import folded
from pipeline.initial.source import Source
from pipeline.models.architecture import parse_arch
from pipeline.models.resnet import BN_COUNTER, ResNet, Stride
from pipeline.run.config import Config
from pipeline.training.optimizer import CLASSIFIER


@dataclass(frozen=True, kw_only=True)
class Taken:
    """tensors: float32, by the net's names. left_out: the net's other tensors, each with the reason. of: the net's tensors.

    remark: a clause on what could not be compared; "": nothing.
    """

    tensors: dict[str, Tensor]
    left_out: dict[str, str]
    of: int
    remark: str = ""


def fit(source: Source, net: ResNet, config: Config, dataset: Dataset) -> Taken:
    """What `net`, which `config` trains on `dataset`, takes of `source`: all but `init_exclude` and a classifier of other
    classes.

    Raises UserError where a pattern of `init_exclude` matches nothing, where what remains is not the net's, tensor by tensor,
    and where `freeze_bn` would freeze a layer that starts at random.
    """
    wanted = {name: value for name, value in net.state_dict().items() if not name.endswith(BN_COUNTER)}
    given = {name: value for name, value in source.state.items() if not name.endswith(BN_COUNTER)}
    _check_stride(source, net, config.stride)
    left_out = _excluded(config.init_exclude, [*wanted, *given])
    if reason := classes_differ(source, dataset):
        left_out = {**{name: reason for name in wanted if name.startswith(CLASSIFIER)}, **left_out}
    others = {name for name in given if name.startswith(CLASSIFIER) and reason}
    needed = {name: value for name, value in wanted.items() if name not in left_out}
    rest = {name: value for name, value in given.items() if name not in left_out and name not in others}
    _check_same_tensors(source, config, needed, rest)
    if not needed:
        raise UserError(f"init_exclude leaves nothing of {source.file} to start from: leave init out, or exclude less")
    if config.freeze_bn:
        _check_frozen(net, left_out)
    if FIRST in rest and source.convention is not None:
        rest = folded(rest, source.convention)
    tensors = {name: rest[name].to(torch.float32).clone() for name in needed}
    _check_finite(source, tensors)
    return Taken(
        tensors=tensors,
        left_out={name: left_out[name] for name in wanted if name in left_out},
        of=len(wanted),
        remark=_remark(source, net, config),
    )


def _remark(source: Source, net: ResNet, config: Config) -> str:
    """A clause on what the weights do not say, and could not be compared; "" where they say all."""
    if source.stride is None and net.architecture.block == "bottleneck":
        return f"the stride, which the file does not state, was not compared with '{config.stride}'"
    return ""


def _check_finite(source: Source, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{name} of the weights in {source.file} holds numbers that are not finite: give other weights"
            )


def classes_differ(source: Source, dataset: Dataset) -> str | None:
    """How the classes of the weights differ from those of `dataset`, as a clause; None where nothing says that they do."""
    if source.classes is None:
        layers = classifier_layers(source.state)
        return f"the classifier there is not one layer but {', '.join(layers)}" if layers else "there is no classifier"
    if source.classes != dataset.classes:
        return f"{source.classes:,} classes there, {dataset.classes:,} here"
    if source.dataset_sha256 == dataset.sha256:
        return None
    if source.wnids is None and source.names is None and source.dataset_sha256 is not None:
        return "another dataset there, whose classes are not known"
    ours = [info.wnid for info in dataset.manifest.classes] if source.wnids else dataset.class_names
    for label, (there, here) in enumerate(zip(source.wnids or source.names or (), ours, strict=False)):
        if there != here:
            return f"class {label} is '{there}' there, '{here}' here"
    return None


def _excluded(patterns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The names that a user excludes. Raises UserError for a pattern that matches none."""
    found: dict[str, str] = {}
    for pattern in patterns:
        matching = [name for name in names if _matches(pattern, name)]
        if not matching:
            layers = {name.partition(".")[0] for name in names}
            raise UserError(f"init_exclude '{pattern}' matches no layer of the net: {nearest(pattern, layers)}")
        found |= dict.fromkeys(matching, "init_exclude")
    return found


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a tensor: by its name, or by that of a layer or stage around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _check_frozen(net: ResNet, left_out: Mapping[str, str]) -> None:
    """Raise UserError where a BN layer that freeze_bn keeps as it is would be left as a new net has it."""
    for layer, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name in module.state_dict():
                if reason := left_out.get(f"{layer}.{name}"):
                    raise UserError(
                        f"freeze_bn keeps batch normalization as the weights have it, and {layer}.{name} is not taken of them "
                        f"({reason}): take it, or leave freeze_bn out"
                    )


def _check_stride(source: Source, net: ResNet, here: Stride) -> None:
    """Raise UserError where the weights are for another stride, which their shapes do not show."""
    there = source.stride
    if there not in (None, here) and net.architecture.block == "bottleneck":
        raise UserError(
            f"the weights in {source.file} are of nets with the stride of '{there}', this run's net has that of "
            f"'{here}', and with these weights it would compute something else: give --stride {there}"
        )


def _check_same_tensors(
    source: Source, config: Config, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Raise UserError, with the first misfit and what may help, where the names or shapes are not equal."""
    for name in [*wanted, *given]:
        if name not in given:
            misfit = f"it lacks {name}"
        elif name not in wanted:
            misfit = f"it has {name}, which this net has not"
        elif given[name].shape != wanted[name].shape:
            misfit = f"its {name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        else:
            continue
        name = name.rpartition(".")[0]
        raise UserError(
            f"the weights in {source.file} are not those of {config.arch} ({misfit}): "
            f"{_advice(source, config, name)}, or leave that layer at random by --init-exclude '[\"{name}\"]'"
        )


def _advice(source: Source, config: Config, layer: str) -> str:
    other = {key: value for key, value in (source.net or {}).items() if value != getattr(config, key)}
    if other:
        return f"that run has {' '.join(f'--{key} {value}' for key, value in other.items())}, which this one needs too"
    shortcut = shortcut_of(source.state, parse_arch(config.arch))
    if "downsample" in layer and shortcut != config.shortcut:
        return f"give --shortcut {shortcut}, which these weights have"
    return "give the net's own --arch and --shortcut"
