"""Opens the weights that a run is to start from: of a run folder, of one of its checkpoints, or of a file from elsewhere."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from torch import Tensor

from pipeline.base.command import UserError, nearest
from pipeline.base.layout import CHECKPOINTS, CONFIG, MODEL, checkpoint_parts
from pipeline.base.words import weights_meaning
from pipeline.data.conventions import CONVENTIONS, OURS, Convention
from pipeline.data.storage import location_in, open_dataset
from pipeline.evaluation.exports import CLASSES, ExportedNet, exported_net, metadata_of
from pipeline.evaluation.foreign import read_weights
from pipeline.evaluation.names import Weights
from pipeline.evaluation.nets import (
    FIND_ATTEMPTS,
    TrainedNet,
    classes_of,
    classifier_layers,
    digest,
    find_checkpoint,
    open_checkpoint,
)
from pipeline.evaluation.published import PREFIX, is_published, published
from pipeline.handover.model_folder import has_model, read_model
from pipeline.run.config import Config
from pipeline.run.options import load
from pipeline.training.optimizer import CLASSIFIER

OPTION = "--init-weights"  # which names one of several sets of weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights as they were found: float tensors by torchvision's names, on the CPU.

    file: that was read. weights: which of a run's, or of the file's ("" where it holds one set). sha256: of the contents, as
    score files name them. iteration: updates that a run had made; None of a file. classes: the rows of the classifier; None
    where there is none.
    convention: how the net wants its images; None of a run, whose nets want them as ours do. net: arch, shortcut and stride
    of a run's net, also of an exported one. dataset_sha256, wnids, names: of the training dataset and its classes, each None
    where it is not known.
    """

    file: Path
    weights: str
    state: dict[str, Tensor]
    sha256: str
    iteration: int | None
    classes: int | None
    convention: Convention | None = None
    net: dict[str, str] | None = None
    dataset_sha256: str | None = None
    wnids: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    @property
    def stride(self) -> str | None:
        """Of bottlenecks, by what stands beside the weights; None where nothing says it, as of runs' nets without metadata."""
        if self.net is not None:
            return self.net["stride"]
        if self.convention is None or self.convention is OURS:
            return None
        return self.convention.stride


def open_source(config: Config, recorded: Path | None = None) -> Source:
    """What `config.init` names. Raises UserError where nothing of the kind is there, or it cannot be used.

    recorded: the checkpoint that this run started from, in an earlier attempt: taken in place of a run's newest while the run
    has it, wherever that lies by now.
    """
    assert config.init is not None
    if is_published(config.init):
        return _of_torchvision(config.init, config)
    place = Path(config.init)
    if not is_there(config.init):
        if known := weights_meaning(config.init, "--init-preprocessing"):
            raise UserError(f"init is '{config.init}': {known}")
        raise UserError(
            f"init is '{config.init}', and nothing is there: give a run folder (runs/NAME), a file in its checkpoints, a "
            f"file of weights (.pt, .pth, .ckpt, .safetensors), or {PREFIX}NET"
        )
    if place.is_dir():
        return _of_run(place, config, recorded)
    if checkpoint_parts(place) and (place.absolute().parent.parent / CONFIG).is_file():
        return _of_checkpoint(place, config)
    return _of_file(place, config)


def is_there(init: str) -> bool:
    """Whether something is at the place that `init` names. Weights of torchvision's count: it can be asked for them."""
    return is_published(init) or Path(init).exists()


def located(init: str, directory: Path) -> str:
    """`init` for processes with another working directory: a path from `directory` on, or torchvision's name as it is."""
    return init if is_published(init) else location_in(directory, init)


def _of_run(folder: Path, config: Config, recorded: Path | None) -> Source:
    if recorded is not None and (taken := folder / CHECKPOINTS / recorded.name).is_file():  # its name holds its digest
        return _of_checkpoint(taken, config)
    for _ in range(FIND_ATTEMPTS):
        path = find_checkpoint(folder)
        if (found := _opened(path, config)) is not None:
            return found
    raise UserError(f"{path} was removed before it could be read: start the same command again")


def _of_checkpoint(path: Path, config: Config) -> Source:
    if (found := _opened(path, config)) is None:
        raise UserError(f"{path} was removed before it could be read: give the run folder instead")
    return found


def _opened(path: Path, config: Config) -> Source | None:
    """The weights in a checkpoint of a run; None where the run has removed it meanwhile."""
    weights = config.init_weights or "final"
    if weights not in get_args(Weights):
        raise UserError(f"init_weights is '{weights}', which no run has: {nearest(weights, list(get_args(Weights)))}")
    if config.init_preprocessing not in (None, "ours"):
        raise UserError(
            f"init_preprocessing is '{config.init_preprocessing}', and {path} is of a run of this pipeline, whose nets all "
            "want their images alike: leave init_preprocessing out"
        )
    trained = open_checkpoint(path, cast(Weights, weights), option=OPTION)
    if trained is None:
        return None
    assert trained.run is not None
    return Source(
        file=path,
        weights=weights,
        state=trained.net.state_dict(),
        sha256=trained.weights_sha256,
        iteration=trained.iteration,
        classes=trained.classes,
        net={"arch": trained.arch, "shortcut": load(trained.run / CONFIG).shortcut, "stride": trained.stride},
        dataset_sha256=trained.training_sha256,
        wnids=_wnids(trained),
    )


def _wnids(trained: TrainedNet) -> tuple[str, ...] | None:
    """The names of a run's class folders: from its model folder, else from its dataset, where one of them is at hand."""
    assert trained.run is not None
    if has_model(trained.run):
        with suppress(UserError):
            return read_model(trained.run / MODEL)[0].wnids
    try:
        dataset = open_dataset(trained.training_data)
    except UserError:
        return None
    if dataset.sha256 != trained.training_sha256:
        return None
    return tuple(info.wnid for info in dataset.manifest.classes)


def _of_torchvision(name: str, config: Config) -> Source:
    """Weights that torchvision publishes, and downloads where they are not there. Their convention is known."""
    if config.init_preprocessing not in (None, "torchvision"):
        raise UserError(
            f"init_preprocessing is '{config.init_preprocessing}', and that of {name} is torchvision's: leave "
            "init_preprocessing out"
        )
    found = published(name)
    return _in_file(found.fetch(), config, found.convention)


def _of_file(path: Path, config: Config) -> Source:
    if (exported := exported_net(path)) is not None:
        if config.init_preprocessing not in (None, OURS.name):
            raise UserError(
                f"init_preprocessing is '{config.init_preprocessing}', and {path} is an export of this pipeline, whose nets "
                "all want their images alike: leave init_preprocessing out"
            )
        return _in_file(path, config, OURS, exported)
    if config.init_preprocessing is None:
        raise UserError(
            f"nothing says which images the weights in {path} have learned from, and a net that gets others starts from "
            f"nonsense: give --init-preprocessing, one of {', '.join(CONVENTIONS)}"
        )
    return _in_file(path, config, CONVENTIONS[config.init_preprocessing])


def _in_file(path: Path, config: Config, convention: Convention, exported: ExportedNet | None = None) -> Source:
    """exported: what the file says of its net, where it is an export of now."""
    state = read_weights(path, config.init_weights, OPTION)
    return Source(
        file=path,
        weights=config.init_weights or "",
        state=state,
        sha256=digest(state),
        iteration=None,
        classes=_classes(state, path),
        convention=convention,
        net={name: getattr(exported, name) for name in ("arch", "shortcut", "stride")} if exported else None,
        dataset_sha256=exported.dataset_sha256 if exported else None,
        wnids=exported.wnids if exported else None,
        names=exported.classes if exported else _names(path),
    )


def _classes(state: dict[str, Tensor], path: Path) -> int | None:
    """The rows of the classifier; None where there is none, or one that no net here has."""
    if classifier_layers(state) or not any(name.startswith(CLASSIFIER) for name in state):
        return None
    return classes_of(state, path)


def _names(path: Path) -> tuple[str, ...] | None:
    """The class names in the metadata of a .safetensors file, as pipeline.export writes them."""
    text = metadata_of(path).get(CLASSES)
    try:
        names: Any = json.loads(text) if text else None
    except ValueError:
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None
