"""What every worker runs: data, models, training, evaluation, tracking. The page to read first is train.py.

From Python, `pipeline.load` opens a trained net; docs/python.md shows the rest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.evaluation.names import Weights
    from pipeline.handover.prediction import Predictor

__all__ = ["load"]

# How long (in loops, here about 50 microseconds) an OpenMP thread that waits keeps its core busy; libgomp reads it when
# torch loads it. Its own 300,000 are for a program alone on its cores: beside another rank's threads, or a loader's, they
# take the cores from those that are waited for (docs/performance.md: a third of the images per second of two ranks).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def load(
    target: str | Path,
    *,
    weights: Weights = "final",
    data: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Predictor:
    """Open the trained net of a run folder, or of a file in its checkpoints/: in evaluation mode, with its own preprocessing.

        model = pipeline.load("runs/resnet50-seed0")
        model.predict("picture.jpg")    # the five classes with the highest scores

    Args:
        target: the run folder, whose newest sound checkpoint is taken, or the checkpoint.
        weights: "final"; "recomputed-bn" or "ema" where the checkpoint has them.
        data: the training dataset, a folder or URL, where it is not where the run's config says. A finished run needs none:
            its model folder has the mean and the names of the classes.
        device: "auto" takes a GPU where there is one.

    Raises pipeline.base.command.UserError, one sentence, where one of them is missing, damaged or another.
    """
    # Here, because it takes seconds, and every module imports this package.
    from pipeline.handover.prediction import open_predictor

    return open_predictor(target, weights, data, device)
