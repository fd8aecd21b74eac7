"""The score files of a run: where they stand, made once, found again.

runs/NAME/scores/PROTOCOL-SPLIT-ITERATION[-recomputed-bn|-ema].npz    the run's own scores: canonical
...-bf16.npz, ...-short-side300.npz and so on                         a trial (`trial_suffix`)
....json                                                              how fast it was made (`Speed`)
....partial.npz                                                       an evaluation that was interrupted
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.base.layout import PARTIAL_SCORES, SPEED, score_files_in, score_path_in, weights_suffix
from pipeline.data.dataset import Dataset, Split, Statistics
from pipeline.data.graphs import Normalization
from pipeline.evaluation.datasets import data_suffix
from pipeline.evaluation.nets import TrainedNet
from pipeline.evaluation.protocols import PROTOCOLS, Protocol
from pipeline.evaluation.scores import Provenance, Scores, load, read_provenance, save
from pipeline.evaluation.scoring import Showing, score_split
from pipeline.process.world import World, on_main


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


def metric_kind(protocol: str, split: str, weights: str, trial: str = "") -> str:
    """What metrics.jsonl and MLflow call the errors of a net or an ensemble. trial: as `trial_suffix` gives it."""
    return f"{protocol}-{split}{weights_suffix(weights)}{trial}"


def trial_suffix(subject: TrainedNet, dataset: Dataset, protocol: Protocol, showing: Showing) -> str:
    """What names a trial by where it differs from the run's own test, such as "-bf16-short-side300"; else "".

    The run's own: float32, at its short side, less its training dataset's mean, on that dataset (by content).
    """
    own, shown = (protocol.views(side, showing.crop) for side in (subject.short_side, showing.short_side))
    parts = [] if showing.precision == "float32" else [str(showing.precision)]
    if shown != own:
        parts.append(f"short-side{showing.short_side}")
    if isinstance(showing.normalization, Normalization):
        parts.append(f"mean{hashlib.sha256(_describe(showing.normalization).encode()).hexdigest()[:8]}")
    return "".join(f"-{part}" for part in parts) + data_suffix(subject, dataset)


def score_path(subject: TrainedNet, protocol: str, split: str, trial: str = "") -> Path:
    """Where the score file of a net stands: in its run folder, or in the working directory where it has none."""
    if subject.run is None:
        return Path(f"{subject.name}-{protocol}-{split}.npz")
    return score_path_in(subject.run, protocol, split, subject.iteration or 0, subject.weights, trial)


def is_canonical(path: Path, made: Provenance) -> bool:
    """Whether a file in a run's scores/ is one of the run's own, no trial, by its name."""
    return path.name == score_path_in(Path(), made.protocol, made.split, made.iteration or 0, made.weights).name


def make(
    subject: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, showing: Showing, path: Path,
    *, world: World, again: bool = False, guarded: bool = False,
) -> ScoreFile | None:  # fmt: skip
    """Score `split` and write the score file `path`; None on ranks other than 0. Every rank calls it.

    Where `path` holds the same scores already they are read, unless `again`. guarded: where it holds others (another
    fingerprint), raise UserError instead of replacing them, unless `again`.
    """
    provenance = provenance_of(subject, split, dataset, protocol, showing)
    found: ScoreFile | None = None

    def stands() -> bool:
        nonlocal found
        found = None if again else _standing(path, provenance, guarded)
        return found is not None

    if on_main(world, stands):
        return found
    partial = path.with_suffix(PARTIAL_SCORES)
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
        write_text(path.with_suffix(SPEED), json.dumps(asdict(speed)) + "\n")
    partial.unlink(missing_ok=True)
    return ScoreFile(scores=scored.scores, path=path, speed=speed, made=True)


def _standing(path: Path, provenance: Provenance, guarded: bool) -> ScoreFile | None:
    """The score file where it stands already, sound and with the same origin."""
    try:
        standing = read_provenance(path)[0] if path.exists() else None
        if standing == provenance:
            return read(path)
    except UserError:
        return None  # damaged: it is made again
    if guarded and standing is not None and standing.fingerprint != provenance.fingerprint:
        raise UserError(
            f"{path} holds other scores already ({standing.checkpoint}, {standing.protocol} on {standing.split}): "
            "name another file with --scores, or have them replaced with --again"
        )
    return None


def read(path: Path) -> ScoreFile:
    """A score file with its speed where that is known. Raises UserError as `scores.load` does."""
    return ScoreFile(scores=load(path), path=path, speed=_read_speed(path))


def provenance_of(
    subject: TrainedNet, split: Split, dataset: Dataset, protocol: Protocol, showing: Showing
) -> Provenance:
    return Provenance(
        arch=subject.arch,
        stride=subject.stride,
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
    """The newest canonical score file of a run under each protocol. Raises UserError where it has none for that split."""
    standing = {protocol: score_files_in(run, protocol, split, weights) for protocol in PROTOCOLS}
    found = {protocol: files[-1][1] for protocol, files in standing.items() if files}
    if not found:
        raise UserError(
            f"the run {run} has no scores of the split '{split}' ({weights} weights): "
            f"write them with 'python -m pipeline.evaluate {run} --split {split}'"
        )
    return found


def _describe(normalization: Statistics | Normalization) -> str:
    if isinstance(normalization, Statistics):
        return "per-pixel mean " + hashlib.sha256(normalization.mean_image.tobytes()).hexdigest()[:16]
    parts = [f"mean {','.join(f'{value:g}' for value in normalization.mean.ravel())}"]
    if normalization.std is not None:
        parts.append(f"std {','.join(f'{value:g}' for value in normalization.std.ravel())}")
    return " ".join(parts)


def _read_speed(path: Path) -> Speed | None:
    try:
        return Speed(**json.loads(path.with_suffix(SPEED).read_text()))
    except (OSError, ValueError, TypeError):
        return None
