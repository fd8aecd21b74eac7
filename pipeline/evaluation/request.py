"""What an evaluation is asked for: made once from the command line, and handed to every rank as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.base.command import UserError
from pipeline.data.conventions import Channels
from pipeline.evaluation.foreign import WeightsFile
from pipeline.evaluation.names import Weights
from pipeline.evaluation.protocols import find
from pipeline.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class TestedRun:
    """A run whose net is tested, and what is to be otherwise than in its own evaluations. Picklable.

    Args:
        target: the run folder, or a file in its checkpoints/.
        data: the dataset, a folder or a URL; None: the one that the run's config names.
        mean: subtracted from the images; None: the mean of the training dataset.
        std: what the images are divided by; None: nothing.
        short_side: pixels of the resized image's shorter side; None: as the run's own evaluations have it.
    """

    __test__ = False  # no class of tests, for pytest

    target: Path
    weights: Weights = "final"
    data: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.std is not None and self.mean is None:
            raise UserError("--std needs --mean: give both on the 0..255 scale")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """One evaluation of one trained model. Picklable.

    Args:
        model: each kind says its dataset and how its images are prepared.
        directory: where relative paths begin, those of the run's config too. Absolute.
        scores: the score file; None: in the run folder, or beside the file of weights.
        again: score anew where a score file exists already.
        threads: of each rank; None: the cores divided among the ranks.
    """

    model: TestedRun | WeightsFile
    directory: Path
    protocols: tuple[str, ...] = ("center",)
    split: str = "val"
    precision: Precision = "float32"
    scores: Path | None = None
    again: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        assert self.directory.is_absolute(), self.directory
        for name in self.protocols:
            find(name)
        if self.scores is not None and (len(self.protocols) > 1 or self.scores.suffix != ".npz"):
            raise UserError("--scores names the one file OUT.npz: give it with one --protocol")

    @property
    def base(self) -> Path:
        """What relative paths are joined to: nothing in a process that works in `directory`, else `directory`.

        So messages show paths as they were typed, except on Ray's workers, which have another working directory.
        """
        return Path() if Path.cwd() == self.directory else self.directory
