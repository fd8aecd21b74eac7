"""Opens a trained net for testing, from a run folder or one of its checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.base.entries import check_entries
from pipeline.base.layout import CHECKPOINTS, CONFIG, checkpoint_parts
from pipeline.base.regular import is_gone
from pipeline.data.conventions import Convention
from pipeline.data.dataset import Subtracted
from pipeline.data.loader import LoaderConfig
from pipeline.data.storage import location_in
from pipeline.evaluation.exports import ExportedMean
from pipeline.evaluation.names import STATE_KEYS, Weights
from pipeline.evaluation.published import PREFIX
from pipeline.models.resnet import BN_COUNTER, ResNet, build
from pipeline.process.world import World, on_main, sum_over_ranks
from pipeline.run.folder import foreign, trained_on
from pipeline.run.options import load
from pipeline.training.checkpoint import Checkpoints, UnsoundError, read_verified

# A name that some net here has.
OF_A_RESNET = re.compile(
    r"((layer\d+\.\d+\.)?(conv|bn)\d|layer\d+\.\d+\.downsample\.\d|fc)"
    rf"\.(weight|bias|running_mean|running_var|{BN_COUNTER})"
)
INSIDE_FC = re.compile(r"(fc\..+)\.(?:weight|bias)")
FIND_ATTEMPTS = 5  # a training removes a checkpoint only after it has published a newer one
MISSING = {  # the end of the message for a checkpoint without those weights
    "recomputed-bn": "holds no weights with recomputed batch normalization statistics: they are made at the end of a training",
    "ema": "holds no moving average of the weights: a training with ema_decay above 0 keeps one",
}


@dataclass(frozen=True, kw_only=True)
class TrainedNet:
    """A net with its weights, on the CPU and in evaluation mode, and all that is needed to test it.

    Attributes:
        stride: the layer at which a downsampling bottleneck strides, which the weights do not show.
        checkpoint: the file of the weights.
        iteration: updates done; None if unknown.
        run: the run folder; None for third-party weights.
        data: the dataset to test on, a folder or a URL.
        training_data: the dataset whose mean is subtracted. subtracted: which mean of it.
        training_sha256: of that dataset's manifest; None if unknown.
        short_side, crop: pixels of the centre-crop test.
        convention: of third-party weights; None: that of the run.
        mean, wnids: what an exported file says of the mean and of its class folders; None of other weights.
        published: the name of weights that somebody publishes, where they were named so: resnet50-IMAGENET1K_V2.
    """

    net: ResNet
    arch: str
    stride: str
    checkpoint: Path
    iteration: int | None
    weights: str
    weights_sha256: str
    run: Path | None
    data: str
    training_data: str
    training_sha256: str | None
    short_side: int
    crop: int
    convention: Convention | None = None
    subtracted: Subtracted = "mean-image"
    mean: ExportedMean | None = None
    wnids: tuple[str, ...] | None = None
    published: str | None = None
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    @property
    def name(self) -> str:
        """The name in tables: that of the run folder, of published weights, or of the file."""
        return self.run.name if self.run else self.published or self.checkpoint.stem

    @property
    def classes(self) -> int:
        return self.net.fc.out_features


def find_checkpoint(target: Path) -> Path:
    """Return the checkpoint `target`, or the newest sound one of the run folder `target`. Raises UserError if there is none."""
    if target.is_dir():
        if not (target / CONFIG).is_file():
            raise UserError(_no_run(target))
        check_entries(target)
        config, data = load(target / CONFIG), trained_on(target)
        checkpoints = Checkpoints(
            target / CHECKPOINTS, config.checkpoint, misfit=lambda state: foreign(state, config, data)
        )
        newest = checkpoints.newest()
        if newest is None:
            raise UserError(f"the run {target} has no checkpoint yet: train it, or wait for its first checkpoint")
        return newest.path
    if not target.exists():
        if str(target).startswith(PREFIX):
            _refuse_weights(f"{target} is no run: give runs/NAME")
        raise UserError(f"there is no run folder or checkpoint {target}: give runs/NAME or a file in its checkpoints")
    if checkpoint_parts(target) is None or not (_run_of(target) / CONFIG).is_file():
        _refuse_weights(
            f"{target} is not a checkpoint of a run (runs/NAME/checkpoints/ITERATION-DIGEST.pt): give one, or runs/NAME"
        )
    check_entries(_run_of(target))
    return target


def _refuse_weights(sentence: str) -> NoReturn:
    """What takes weights that are no run's, in words that are true of every command that takes runs."""
    raise UserError(
        f"{sentence}; python -m pipeline.evaluate --weights tests weights from elsewhere, and a training takes them with --init"
    )


def _no_run(folder: Path) -> str:
    """Why a folder is no run, and what to give: exports (pipeline/handover/exporting.py) have the names of their runs."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return f"{folder} is not a run folder (it has no {CONFIG}): give one that a training wrote"
    return (
        f"{folder} is an exported net, not a run folder: give the run that it was made of; its README.md shows how to use it, "
        f"and --init and pipeline.evaluate --weights take {weights}"
    )


def open_target(target: Path, weights: Weights, data: str | None, world: World, base: Path = Path()) -> TrainedNet:
    """Open the net of a run folder or a checkpoint, the same on every rank. A collective: every rank calls it.

    A training may remove the checkpoint that was found; of a run folder the newest is then looked up again. For arguments
    and errors see `open_checkpoint`.
    """
    for _ in range(FIND_ATTEMPTS if on_main(world, target.is_dir) else 1):
        path = on_main(world, lambda: find_checkpoint(target))
        trained = open_checkpoint(path, weights, data, base)
        removed = sum_over_ranks(world, int(trained is None))
        if trained is not None and not removed:
            return trained
    raise UserError(
        f"{path} was removed before it could be read (a training keeps only its newest): give the run folder instead"
    )


def open_checkpoint(
    path: Path, weights: Weights, data: str | None = None, base: Path = Path(), option: str = "--weights"
) -> TrainedNet | None:
    """Open the net in one checkpoint file of a run; None if the file was removed after it was found.

    data: the dataset to test on; None is the one in the run's config. base: where relative locations of datasets begin.
    option: the one by which users choose `weights`.
    Raises UserError if the file is damaged, of another run, or has no such weights.
    """
    run = _run_of(path)
    try:
        found = read_verified(path)
    except UnsoundError as error:
        if is_gone(path):
            return None
        raise UserError(f"{path} is damaged ({error}): give another checkpoint of that run") from None
    config, key, state, trained = load(run / CONFIG), STATE_KEYS[weights], found.state, trained_on(run)
    if (other := foreign(state, config, trained)) is not None:
        raise UserError(f"{path} is not of the run {run}: {other}; put it back into its own run folder")
    if key not in state:
        raise UserError(f"{path} {MISSING[weights]}; use {option} final")
    net = build(config.arch, classes=classes_of(state[key], path), shortcut=config.shortcut, stride=config.stride)
    load_weights(net, state[key], path)
    return TrainedNet(
        net=net,
        arch=config.arch,
        stride=config.stride,
        checkpoint=path,
        iteration=int(state["iteration"]),
        weights=weights,
        weights_sha256=digest(net.state_dict()),
        run=run,
        data=location_in(base, data or config.data),
        training_data=location_in(base, config.data),
        training_sha256=trained,
        short_side=config.evaluation.short_side,
        crop=config.test_crop,
        subtracted=config.subtract,
        loader=config.loader,
    )


def load_weights(net: ResNet, state: Mapping[str, Tensor], place: Path) -> None:
    """Load `state` (torchvision's names) into `net`, and put the net into evaluation mode.

    Raises UserError, with the first misfit, if the weights do not fit.
    """
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(BN_COUNTER)]
    unknown = [key for key in state if key not in wanted]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    name = net.architecture.name
    if strange := [key for key in unknown if not OF_A_RESNET.fullmatch(key)]:
        raise UserError(
            f"the weights in {place} are not those of {name}, nor of another net here (it has {strange[0]}): give those of a "
            "net in torchvision's naming"
        )
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}"
        raise UserError(f"the weights in {place} are not those of {name} ({what}): give the net's own --arch")
    if misshapen:
        given, needed = (list(weights[misshapen[0]].shape) for weights in (state, wanted))
        raise UserError(f"{misshapen[0]} in {place} is {given} but {name} has {needed}: give the net's own --arch")
    net.load_state_dict(dict(state), strict=False)  # only BN_COUNTER may be missing
    net.eval()  # whoever calls the net means its running statistics


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict's contents, whatever file they came from: names, dtypes, shapes and values.

    BN_COUNTER is left out, because evaluation does not use it and third-party files may lack it.
    """
    hashed = hashlib.sha256()
    for key in sorted(state):
        if not key.endswith(BN_COUNTER):
            value = state[key].detach().cpu().contiguous()
            hashed.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
            hashed.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.absolute().parent.parent


def classes_of(state: Mapping[str, Any], place: Path) -> int:
    """Return the number of classes of the net with these weights. Raises UserError if it has no fc layer, or another kind."""
    if layers := classifier_layers(state):
        raise UserError(
            f"the classifier in {place} is not one linear layer with a bias (it has {', '.join(layers)}), as that of every net "
            "here is: its scores cannot be computed here"
        )
    bias = state.get("fc.bias")
    if not isinstance(bias, Tensor) or bias.ndim != 1:
        raise UserError(f"the weights in {place} have no fc.bias: they are not those of a net of the ResNet family")
    return len(bias)


def classifier_layers(state: Mapping[str, Any]) -> list[str]:
    """The layers inside a classifier that is not one linear layer: fc.0, fc.3; none of other nets."""
    return list(dict.fromkeys(match[1] for name in state if (match := INSIDE_FC.fullmatch(name))))
