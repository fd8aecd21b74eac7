"""Makes and finds the score files of a run.

runs/NAME/scores/PROTOCOL-SPLIT-ITERATION[-recomputed-bn|-ema].npz    canonical: scores under the run's own settings
...-bf16.npz, ...-short-side300.npz and so on                         a trial under other settings (`trial_suffix`)
....json                                                              how fast the file was made (`Speed`)
....partial.npz                                                       an interrupted evaluation
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.base.command import UserError
from pipeline.base.files import check_room, write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import (
    PARTIAL_SCORES,
    SCORES,
    SPEED,
    is_score_file,
    score_files_in,
    score_path_in,
    weights_suffix,
)
from pipeline.base.regular import read_regular
from pipeline.data.dataset import Dataset, Split, Statistics
from pipeline.data.graphs import Normalization
from pipeline.evaluation.datasets import data_suffix
from pipeline.evaluation.decoding import with_working_decoder
from pipeline.evaluation.nets import TrainedNet
from pipeline.evaluation.protocols import PROTOCOLS, Protocol
from pipeline.evaluation.scores import Provenance, Scores, load, read_provenance, save, score_bytes
from pipeline.evaluation.scoring import EvaluationSettings, score_split
from pipeline.process.world import World, on_main


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a score file was made; kept beside the file, whose bytes must not depend on it."""

    images: int
    seconds: float
    world_size: int
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """A score file and its speed (None if unknown)."""

    scores: Scores
    path: Path
    speed: Speed | None

    @property
    def images_per_second(self) -> float | None:
        return self.speed.images / self.speed.seconds if self.speed else None


def metric_kind(protocol: str, split: str, weights: str, trial: str = "") -> str:
    """Return the kind under which metrics.jsonl and MLflow list the errors of a net or an ensemble. trial: a `trial_suffix`."""
    return f"{protocol}-{split}{weights_suffix(weights)}{trial}"


def trial_suffix(trained: TrainedNet, dataset: Dataset, protocol: Protocol, settings: EvaluationSettings) -> str:
    """Return how a trial differs from the run's own test, such as "-bf16-short-side300"; "" if it does not.

    The run's own test is float32, at its short side, with its training dataset's mean, on that dataset (by content).
    """
    usual, views = (replace(settings, short_side=trained.short_side).views(protocol), settings.views(protocol))
    parts = [] if settings.precision == "float32" else [str(settings.precision)]
    if views != usual:
        parts.append(f"short-side{settings.short_side}")
    if isinstance(settings.normalization, Normalization):
        parts.append(f"mean{hashlib.sha256(_describe(settings.normalization).encode()).hexdigest()[:8]}")
    return "".join(f"-{part}" for part in parts) + data_suffix(trained, dataset)


def score_path(trained: TrainedNet, protocol: str, split: str, trial: str = "") -> Path:
    """Return the path of a net's score file: in its run folder; of a file of weights beside that file.

    It is in the working directory where nothing can be written beside the file, and of published weights, which lie in a
    folder of caches.
    """
    if trained.run is None:
        folder = trained.checkpoint.parent
        beside = trained.published is None and os.access(folder, os.W_OK)
        return (folder if beside else Path()) / f"{trained.name}-{protocol}-{split}.npz"
    return score_path_in(trained.run, protocol, split, trained.iteration or 0, trained.weights, trial)


def is_canonical(path: Path, origin: Provenance) -> bool:
    """Return whether a file in a run's scores/ is canonical, no trial, by its name."""
    return path.name == score_path_in(Path(), origin.protocol, origin.split, origin.iteration or 0, origin.weights).name


def canonical_scores(
    run: Path, wanted: Callable[[Provenance], bool], unreadable: Callable[[UserError], None] = lambda error: None
) -> Iterator[Scores]:
    """The labelled scores in a run's canonical score files whose origin is `wanted`; only those files are read whole, one at
    a time.

    unreadable: told why a file, of another version say, is left out.
    """
    for path in filter(is_score_file, sorted((run / SCORES).glob("*.npz"))):
        try:
            origin, _ = read_provenance(path)
            scores = load(path) if is_canonical(path, origin) and wanted(origin) else None
        except UserError as error:
            unreadable(error)
            continue
        if scores is not None and scores.labelled:
            yield scores


def make(
    trained: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, settings: EvaluationSettings, path: Path,
    *, world: World, again: bool = False, guarded: bool = False, give_up: Callable[[], bool] = lambda: False,
) -> ScoreFile | None:  # fmt: skip
    """Score `split` and write the score file `path`; None on ranks other than 0. A collective: every rank calls it.

    Whether there is room for the file is tried first (`check_room`, with the errors that it raises).
    If `path` holds the same scores already, they are read, unless `again`. guarded: if it holds others (another
    fingerprint), raise UserError instead of replacing them, unless `again`. give_up: as in `score_split`.
    """
    provenance = provenance_of(trained, split, dataset, protocol, settings)
    existing: ScoreFile | None = None

    def exists() -> bool:
        nonlocal existing
        existing = None if again else _existing(path, provenance, guarded)
        return existing is not None

    if on_main(world, exists):
        return existing
    on_main(world, lambda: check_room(path, size=score_bytes(len(split), trained.classes)))
    views = settings.views(protocol)
    settings = with_working_decoder(settings, split, views, trained.run, world)
    partial = path.with_suffix(PARTIAL_SCORES)
    scored = score_split(
        trained.net, split, protocol, settings,
        world=world, classes=trained.classes, provenance=provenance, partial=partial, give_up=give_up,
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
        write_text(path.with_suffix(SPEED), json.dumps(asdict(speed)) + "\n")
    partial.unlink(missing_ok=True)
    return ScoreFile(scores=scored.scores, path=path, speed=speed)


def _existing(path: Path, provenance: Provenance, guarded: bool) -> ScoreFile | None:
    """Return the score file `path` if it exists, is sound and has the same origin."""
    try:
        other = read_provenance(path)[0] if path.exists() else None
        if other == provenance:
            return read(path)
    except UserError:
        return None  # damaged: it is made again
    if guarded and other is not None and other.fingerprint != provenance.fingerprint:
        raise UserError(
            f"{path} holds other scores already ({other.checkpoint}, {other.protocol} on {other.split}): "
            "name another file with --scores, or replace them with --again"
        )
    return None


def read(path: Path) -> ScoreFile:
    """Read a score file with its speed, if that is known. Raises UserError as `scores.load` does."""
    return ScoreFile(scores=load(path), path=path, speed=_read_speed(path))


def provenance_of(
    trained: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, settings: EvaluationSettings
) -> Provenance:
    return Provenance(
        arch=trained.arch,
        stride=trained.stride,
        checkpoint=trained.checkpoint.name,
        iteration=trained.iteration,
        weights=trained.weights,
        weights_sha256=trained.weights_sha256,
        dataset_sha256=dataset.sha256,
        split=split.name,
        protocol=protocol.name,
        short_sides=tuple(view.short_side for view in settings.views(protocol)),
        crop=settings.crop,
        normalization=_describe(settings.normalization),
        precision=settings.precision,
        preprocessing=trained.convention.describe() if trained.convention else "",
    )


def newest(run: Path, split: str, weights: str) -> dict[str, Path]:
    """Return a run's newest canonical score file by protocol. Raises UserError if the run has none of that split."""
    files = {name: found[-1][1] for name in PROTOCOLS if (found := score_files_in(run, name, split, weights))}
    if not files:
        raise UserError(
            f"the run {run} has no scores of the split '{split}' ({weights} weights): "
            f"write them with 'python -m pipeline.evaluate {run} --split {split}'"
        )
    return files


def _describe(normalization: Statistics | Normalization) -> str:
    if isinstance(normalization, Statistics):
        if normalization.mean_image.size == 3:  # `Statistics.subtracting` the mean colour
            return _describe(Normalization.of(normalization, None))
        return "per-pixel mean " + hashlib.sha256(normalization.mean_image.tobytes()).hexdigest()[:16]
    given = {"mean": normalization.mean, "std": normalization.std}
    texts = {name: ",".join(f"{v:g}" for v in values.ravel()) for name, values in given.items() if values is not None}
    return " ".join(f"{name} {text}" for name, text in texts.items())


def _read_speed(path: Path) -> Speed | None:
    try:
        return Speed(**parse_json(read_regular(path.with_suffix(SPEED))))
    except (OSError, ValueError, TypeError):
        return None
