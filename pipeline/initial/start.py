"""Settles what a run starts from, once: the weights that `init` names, or the checkpoint that the run itself has by now.

The weights count by their content: `init_sha256` of what the net takes is part of the run's trajectory, and stands in its
config.yaml from the first attempt on. A run that has a checkpoint of its own needs its `init` no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.command import UserError
from pipeline.base.layout import CHECKPOINTS, CONFIG, checkpoints_in
from pipeline.base.stopping import say
from pipeline.data.dataset import Dataset
from pipeline.evaluation.nets import digest
from pipeline.initial.fitting import fit
from pipeline.initial.source import Source, open_source
from pipeline.models.resnet import build
from pipeline.process.world import World, on_main
from pipeline.run.config import Config
from pipeline.run.folder import read_facts
from pipeline.run.options import load
from pipeline.run.starting_point import StartingPoint, starting_point_in


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from.

    config: the run's, with `init_sha256` where it has an `init`. weights: what its net takes, float32 by the net's names;
    None where it starts at random, or goes on from a checkpoint of its own. point: for run.json; None where there is nothing
    to note.
    """

    config: Config
    weights: dict[str, Tensor] | None = None
    point: StartingPoint | None = None


def start_of(config: Config, dataset: Dataset, world: World) -> Start:
    """`settle` for all ranks: rank 0 reads, and every rank gets the same weights. A collective: every rank calls it."""
    start = on_main(world, lambda: settle(config, dataset))
    if start.point is not None and world.is_main:
        say(f"starts from {start.point}")
    return start


def settle(config: Config, dataset: Dataset) -> Start:
    """What the run that `config` describes starts from. Writes nothing. Raises UserError where it cannot start from it."""
    if config.init is None:
        return Start(config=config)
    _check_not_itself(config)
    noted = _noted(config)
    goes_on = noted is not None and bool(checkpoints_in(config.run_folder / CHECKPOINTS))
    if goes_on and not Path(config.init).is_file():
        # Nothing of it is needed any more; and a run that was not finished then may have gone on.
        return Start(config=replace(config, init_sha256=config.init_sha256 or noted))
    source = _source(config)
    generator = torch.Generator().manual_seed(config.seed)
    net = build(
        config.arch, classes=dataset.classes, shortcut=config.shortcut, stride=config.stride, generator=generator
    )
    taken = fit(source, net, config, dataset)
    sha256 = digest(taken.tensors)
    if config.init_sha256 not in (None, sha256):
        raise UserError(
            f"what the net takes from {source.file} has the SHA-256 {sha256}, and init_sha256 is {config.init_sha256}: give "
            "the weights that belong to it, or leave init_sha256 out"
        )
    settled = replace(config, init_sha256=sha256)
    if goes_on:
        return Start(config=settled)
    point = StartingPoint(
        init=config.init,
        file=str(source.file.absolute()),
        weights=source.weights,
        iteration=source.iteration,
        sha256=source.sha256,
        taken=len(taken.tensors),
        of=taken.of,
        left_out=taken.left_out,
        remark=taken.remark,
    )
    return Start(config=settled, weights=taken.tensors, point=point)


def check_source(config: Config) -> None:
    """Raise UserError where the run needs weights to start from, and `settle` would not find them: without its dataset."""
    if config.init is not None:
        _check_not_itself(config)
        if not checkpoints_in(config.run_folder / CHECKPOINTS):
            _source(config)


def _source(config: Config) -> Source:
    """The weights that `init` names: in an attempt after the first, before there is a checkpoint, those of the first."""
    before = starting_point_in(read_facts(config.run_folder))
    return open_source(config, Path(before.file) if before else None)


def _noted(config: Config) -> str | None:
    """`init_sha256` of the run that stands in the folder already."""
    path = config.run_folder / CONFIG
    return load(path).init_sha256 if path.is_file() else None


def _check_not_itself(config: Config) -> None:
    assert config.init is not None
    own, place = config.run_folder.resolve(), Path(config.init).resolve()
    if own in (place, *place.parents):
        raise UserError(
            f"init is {config.init}, which is this run's own folder: leave init out to continue the run, or choose another "
            "--name for a run that starts from its weights"
        )
