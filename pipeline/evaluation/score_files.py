"""The score files of a run: where they stand, made once, found again.

runs/NAME/scores/PROTOCOL-SPLIT-ITERATION[-recomputed-bn|-ema].npz    the score file
....json                                                         how fast it was made (`Speed`)
....partial.npz                                                  an evaluation that was interrupted
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.command import UserError
from pipeline.data.dataset import Dataset, Split, Statistics
from pipeline.data.graphs import Normalization
from pipeline.evaluation.definitions import Protocol
from pipeline.evaluation.nets import TrainedNet
from pipeline.evaluation.protocols import Showing, score_split
from pipeline.evaluation.scores import Provenance, Scores, load, read_provenance, save
from pipeline.files import write_text
from pipeline.world import World, on_main

SCORES = "scores"
PARTIAL = ".partial.npz"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a score file was made. It stands beside the file, because the file itself must not depend on it."""

    images: int
    seconds: float
    world_size: int
    device: str
    threads: int

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """A score file and its speed, None where that is not known. `made`: now, not found."""

    scores: Scores
    path: Path
    speed: Speed | None
    made: bool = False

    @property
    def images_per_second(self) -> float | None:
        return self.speed.images_per_second if self.speed else None


def is_score_file(path: Path) -> bool:
    """Whether a file in scores/ is whole, by its name."""
    return path.suffix == ".npz" and not path.name.endswith(PARTIAL) and not path.name.startswith(".")


def score_path(subject: TrainedNet, protocol: str, split: str) -> Path:
    """Where the score file of a net stands: in its run folder, or in the working directory where it has none."""
    if subject.run is None:
        return Path(f"{subject.name}-{protocol}-{split}.npz")
    return score_path_in(subject.run, protocol, split, subject.iteration or 0, subject.weights)


def score_path_in(run: Path, protocol: str, split: str, iteration: int, weights: str) -> Path:
    """Where a run's score file stands."""
    suffix = "" if weights == "final" else f"-{weights}"
    return run / SCORES / f"{protocol}-{split}-{iteration:08d}{suffix}.npz"


def make(
    subject: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, showing: Showing, path: Path,
    *, world: World, again: bool = False,
) -> ScoreFile | None:  # fmt: skip
    """Score `split` and write the score file `path`; None on ranks other than 0. Every rank calls it.

    Where `path` holds the same scores already (equal fingerprint) they are read, unless `again`.
    """
    provenance = provenance_of(subject, split, dataset, protocol, showing)
    found = None if again or not world.is_main else _standing(path, provenance)
    if on_main(world, lambda: found is not None):
        return found
    partial = path.with_suffix(PARTIAL)
    scored = score_split(
        subject.net, split, protocol, showing, world=world, classes=subject.classes, provenance=provenance,
        partial=partial, show_progress=True,
    )  # fmt: skip
    if scored is None:
        return None
    save(scored.scores, path)
    speed = None
    if scored.images:
        speed = Speed(
            images=scored.images,
            seconds=scored.seconds,
            world_size=world.size,
            device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
            threads=torch.get_num_threads(),
        )
        write_text(_speed_path(path), json.dumps(asdict(speed)) + "\n")
    partial.unlink(missing_ok=True)
    return ScoreFile(scores=scored.scores, path=path, speed=speed, made=True)


def _standing(path: Path, provenance: Provenance) -> ScoreFile | None:
    """The score file where it stands already, sound and with the same origin."""
    try:
        return read(path) if path.exists() and read_provenance(path)[0] == provenance else None
    except UserError:
        return None  # damaged: it is made again


def read(path: Path) -> ScoreFile:
    """A score file with its speed where that is known. Raises UserError as `scores.load` does."""
    return ScoreFile(scores=load(path), path=path, speed=_read_speed(path))


def provenance_of(
    subject: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, showing: Showing
) -> Provenance:
    return Provenance(
        arch=subject.arch,
        checkpoint=subject.checkpoint.name,
        iteration=subject.iteration,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        dataset_sha256=dataset.sha256,
        split=split.name,
        protocol=protocol.name,
        short_sides=tuple(view.short_side for view in protocol.views(showing.short_side, showing.crop)),
        crop=showing.crop,
        normalization=_describe(showing.normalization),
        precision=showing.precision,
    )


def newest(run: Path, split: str, weights: str) -> dict[str, Path]:
    """The newest score file of a run under each protocol. Raises UserError where the run has none for that split."""
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted((run / SCORES).glob("*.npz")):
        if not is_score_file(path):
            continue
        provenance, _ = read_provenance(path)
        if (provenance.split, provenance.weights) == (split, weights):
            iteration = provenance.iteration or 0
            if iteration >= found.get(provenance.protocol, (0, path))[0]:
                found[provenance.protocol] = (iteration, path)
    if not found:
        raise UserError(
            f"the run {run} has no scores of the split '{split}' ({weights} weights): "
            f"write them with 'python -m pipeline.evaluate {run} --split {split}'"
        )
    return {protocol: path for protocol, (_, path) in found.items()}


def _describe(normalization: Statistics | Normalization) -> str:
    if isinstance(normalization, Statistics):
        return "per-pixel mean " + hashlib.sha256(normalization.mean_image.tobytes()).hexdigest()[:16]
    parts = [f"mean {','.join(f'{value:g}' for value in normalization.mean.ravel())}"]
    if normalization.std is not None:
        parts.append(f"std {','.join(f'{value:g}' for value in normalization.std.ravel())}")
    return " ".join(parts)


def _speed_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_speed(path: Path) -> Speed | None:
    try:
        return Speed(**json.loads(_speed_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None
