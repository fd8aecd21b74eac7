"""Settles what a run starts from, once: the weights that `init` names, or the checkpoint that the run itself has by now.

The weights count by their content: `init_sha256` of what the net takes is part of the run's trajectory, and stands in its
config.yaml from the first attempt on. A run that has a checkpoint of its own needs the weights that it started from no more;
other weights that it is given are read and compared.
"""

from __future__ import annotations

import json
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
from pipeline.initial.source import Source, is_there, open_source
from pipeline.models.resnet import build
from pipeline.process.world import World, on_main
from pipeline.run.config import HOW_TAKEN, Config
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
    noted, source = _noted(config), _source(config)
    if source is None:
        assert noted is not None
        return Start(config=replace(config, init_sha256=config.init_sha256 or noted.init_sha256))
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
    if _goes_on(config, noted):
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
        _source(config)


def _source(config: Config) -> Source | None:
    """The weights that `init` names: in an attempt after the first, before there is a checkpoint, those of the first.

    None where they need not be read: the run goes on from a checkpoint of its own, and `init` names what it started from,
    which may be gone, or a run that was not finished then and has gone on. A file that is still there is read all the same.
    """
    assert config.init is not None
    noted, point = _noted(config), starting_point_in(read_facts(config.run_folder))
    if noted is not None and _goes_on(config, noted):
        if _is_the_same(config, noted, point) and not Path(config.init).is_file():
            return None
        if not is_there(config.init):
            raise UserError(
                f"the run {config.run_folder} started with {_as_options(noted)}, and whether {_as_options(config)} means the "
                "same weights cannot be told, because they are not there: give the former, whose weights are needed no more"
            )
    return open_source(config, Path(point.file) if point else None)


def _noted(config: Config) -> Config | None:
    """The config of the run that stands in the folder already."""
    path = config.run_folder / CONFIG
    return load(path) if path.is_file() else None


def _goes_on(config: Config, noted: Config | None) -> bool:
    """Whether the run in the folder, whose config is `noted`, has started from weights and has a checkpoint of its own."""
    started = noted is not None and noted.init_sha256 is not None
    return started and bool(checkpoints_in(config.run_folder / CHECKPOINTS))


def _is_the_same(config: Config, noted: Config, point: StartingPoint | None) -> bool:
    """Whether `init` names the place that the run has noted, and the keys beside it take the same of what is there."""
    places = [noted.init, *((point.init, point.file) if point else ())]
    known = {Path(place).resolve() for place in places if place is not None}
    same = all(getattr(config, key) == getattr(noted, key) for key in HOW_TAKEN)
    return same and Path(str(config.init)).resolve() in known


def _as_options(config: Config) -> str:
    """`--init runs/x --init-weights ema`, as a command line has them."""
    given = {"init": config.init} | {key: getattr(config, key) for key in HOW_TAKEN if getattr(config, key)}
    words = {key: json.dumps(value) if isinstance(value, tuple) else value for key, value in given.items()}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in words.items())


def _check_not_itself(config: Config) -> None:
    assert config.init is not None
    own, place = config.run_folder.resolve(), Path(config.init).resolve()
    if own in (place, *place.parents):
        raise UserError(
            f"init is {config.init}, which is this run's own folder: leave init out to continue the run, or choose another "
            "--name for a run that starts from its weights"
        )
