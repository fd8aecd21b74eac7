"""Finds the net in what other programs save: state dicts in checkpoints, with the prefixes of what nets are wrapped in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.base.command import UserError, nearest
from pipeline.models.resnet import BN_COUNTER

DEPTH = 4  # of mappings in mappings: a checkpoint's own, {"state": {"model": ...}}, and some to spare
# What wrappers put into the middle of names too: torch.compile, activation checkpointing, FSDP.
INSIDE = re.compile(r"(^|\.)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.)")
# The public CIFAR reproductions name two layers differently.
RENAMED = ((re.compile(r"^linear\."), "fc."), (re.compile(r"\.shortcut\."), ".downsample."))
# pycls names all layers differently (pycls/models/resnet.py and anynet.py); its blocks count from 1, torchvision's from 0.
PYCLS = "stem.conv.weight"
PYCLS_STEM_AND_HEAD = ((re.compile(r"(^|\.)stem\.conv\."), r"\1conv1."), (re.compile(r"(^|\.)stem\.bn\."), r"\1bn1."),
                       (re.compile(r"(^|\.)head\.fc\."), r"\1fc."))  # fmt: skip
PYCLS_BLOCK = re.compile(r"(?:^|(?<=\.))s(\d+)\.b(\d+)\.(proj|bn|f\.[abc]|f\.[abc]_bn)\.")
# The first and the last layer of every net here: what stands before both is the name of what the net is part of.
FIRST, LAST = "conv1.weight", ("fc.weight", "linear.weight")
# Counters of wrappers, which no net needs: torch.optim.swa_utils.AveragedModel's, and state that is no tensor.
COUNTERS = re.compile(r"(^|\.)(n_averaged|_extra_state)$")
QUANTISED = re.compile(r"(^|\.)(_packed_params\.|zero_point$)")

Names = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """One set of weights in a file. place: as `--weights-key` names it; "" where the file holds nothing else.

    tensors: by their names in the net. beside: the names that stand beside the net's.
    """

    place: str
    tensors: Names
    beside: tuple[str, ...]

    @property
    def is_net(self) -> bool:
        """Whether it is likely to be a net's, and not an optimizer's momentum or another kind of net."""
        return FIRST in self.tensors and any(name.endswith("running_mean") for name in self.tensors)


def unwrap(loaded: Any, file: Path, key: str | None = None, option: str = "--weights-key") -> dict[str, Tensor]:
    """The net's weights, by torchvision's names, in what a file holds; `key` names one of several sets.

    option: the one by which users give `key`.
    Raises UserError where there is none, where there are several and `key` is None, and where tensors beside the net's may
    belong to it.
    """
    found = {one.place: one for mapping, place in _state_dicts(loaded) for one in _nets(mapping, place)}
    if not found:
        raise UserError(f"{file} holds no state dict (a mapping of names to tensors): give one in torchvision's naming")
    nets = {place: one for place, one in found.items() if one.is_net} or found
    if key is not None and key not in found:
        raise UserError(f"{file} holds no weights '{key}': {nearest(key, list(found))}")
    if key is None and len(nets) > 1:
        places = ", ".join(f"'{place}'" for place in nets)
        raise UserError(f"{file} holds several sets of weights ({places}): name one by {option} {next(iter(nets))!r}")
    net = found[key] if key is not None else next(iter(nets.values()))
    if key is None and net.beside:
        more = f" and {len(net.beside) - 1} more" if len(net.beside) > 1 else ""
        raise UserError(
            f"{file} holds more than one net ({net.beside[0]}{more}): to test the weights '{net.place}' alone, give "
            f"{option} {net.place!r}"
        )
    _check_tensors(net, file)
    return _with_plain_classifier(net.tensors)


def _state_dicts(loaded: Any, place: str = "", depth: int = DEPTH) -> Iterator[tuple[Names, str]]:
    """(mapping, its place) of every mapping of names to tensors in `loaded`; `place` is dotted."""
    if isinstance(loaded, list | tuple):
        loaded = {str(number): value for number, value in enumerate(loaded)}
    if not isinstance(loaded, Mapping):
        return
    named = all(isinstance(key, str) for key in loaded)
    if named and any(isinstance(value, Tensor) and _of_a_layer(key) for key, value in loaded.items()):
        names = {INSIDE.sub("", key).removeprefix("."): value for key, value in loaded.items()}
        is_pycls = any(key.endswith(PYCLS) for key in names)
        yield {_of_pycls(key): value for key, value in names.items()} if is_pycls else names, place
    elif depth > 0:
        for key, value in loaded.items():
            yield from _state_dicts(value, f"{place}.{key}".removeprefix("."), depth - 1)


def _of_pycls(key: str) -> str:
    """Torchvision's name for pycls's: s1.b1.f.a_bn.weight is layer1.0.bn1.weight."""

    def block(match: re.Match[str]) -> str:
        stage, number, layer = match[1], int(match[2]) - 1, match[3]
        if layer in ("proj", "bn"):
            usual = "downsample.0" if layer == "proj" else "downsample.1"
        else:
            usual = f"{'bn' if layer.endswith('_bn') else 'conv'}{'abc'.index(layer[2]) + 1}"
        return f"layer{stage}.{number}.{usual}."

    for pattern, name in PYCLS_STEM_AND_HEAD:
        key = pattern.sub(name, key)
    return PYCLS_BLOCK.sub(block, key)


def _of_a_layer(key: str) -> bool:
    return key.endswith((".weight", ".weight_orig", ".weight_g", ".original0"))


def _nets(mapping: Names, place: str) -> Iterator[Found]:
    """The nets in one state dict: one for each prefix of both a first and a last layer; else the whole, without the prefix
    that all of its names have."""
    names = [key for key in mapping if not COUNTERS.search(key)]
    firsts = [key.removesuffix(FIRST) for key in names if key.endswith(FIRST)]
    prefixes = [prefix for prefix in firsts if any(prefix + last in mapping for last in LAST)]
    for prefix in prefixes or [_shared(names)]:
        others = tuple(other for other in prefixes if len(other) > len(prefix))
        own = [key for key in names if key.startswith(prefix) and not key.startswith(others)]
        beside = [key for key in names if not key.startswith((prefix, *prefixes))]
        tensors = {_usual_name(key.removeprefix(prefix)): mapping[key] for key in own}
        yield Found(f"{place}.{prefix}".strip("."), tensors, tuple(beside))


def _shared(names: Sequence[str]) -> str:
    """The parts, with their dots, that all names begin with."""
    parts = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{part[0]}." for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))


def _usual_name(key: str) -> str:
    for pattern, name in RENAMED:
        key = pattern.sub(name, key)
    return key


def _with_plain_classifier(tensors: Names) -> Names:
    """The net with `fc.1.weight` as `fc.weight`, and its bias, where the classifier holds one linear layer and nothing else.

    People put a Sequential of Dropout and Linear there. Dropout has no tensors, and does nothing in a test.
    """
    inside = {name: name.rpartition(".") for name in tensors if name.startswith("fc.")}
    dimensions = {(layer, kind): getattr(tensors[name], "ndim", 0) for name, (layer, _, kind) in inside.items()}
    layer = next(iter(inside.values()), ("",))[0]
    if dimensions != {(layer, "weight"): 2, (layer, "bias"): 1}:
        return tensors
    return {f"fc.{inside[name][2]}" if name in inside else name: value for name, value in tensors.items()}


def _check_tensors(net: Found, file: Path) -> None:
    """Raise UserError for weights that are no floating point numbers."""
    for name, value in net.tensors.items():
        if QUANTISED.search(name) or (isinstance(value, Tensor) and value.is_quantized):
            raise UserError(f"{file} holds a quantised net ({name}): give the weights from before quantisation")
        if not isinstance(value, Tensor):
            raise UserError(f"{name} in {file} is no tensor but {type(value).__name__}: give the state dict of a net")
        if not value.is_floating_point() and not name.endswith(BN_COUNTER):
            raise UserError(f"{name} in {file} holds whole numbers ({value.dtype}): give weights in floating point")
