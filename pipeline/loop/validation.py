"""A run's val errors: of its weights, of their moving average, and of the weights with recomputed BN statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.data.dataset import Split, Statistics
from pipeline.data.loader import LoaderConfig
from pipeline.evaluation.scoring import evaluate_errors
from pipeline.loop.progress import AVERAGE, RECOMPUTED_BN, WEIGHTS, RunProgress
from pipeline.run.config import Config
from pipeline.training.average import WeightAverage
from pipeline.training.step import TrainingStep


@dataclass(frozen=True)
class Validation:
    """The val errors of the run that `step` trains, noted in `progress`. statistics: of the dataset, for normalization."""

    config: Config
    split: Split
    statistics: Statistics
    loader: LoaderConfig
    step: TrainingStep
    progress: RunProgress

    def due(self) -> list[str]:
        """The kinds of val errors that are due at this iteration and not computed yet."""
        done, config = self.progress.iteration, self.config
        if not done or (done % config.evaluation.every and done < config.iterations):
            return []
        kinds = (WEIGHTS, AVERAGE) if self.step.average else (WEIGHTS,)
        return [kind for kind in kinds if self.progress.evaluated.get(kind) != done]

    def evaluate(self, kind: str, give_up: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Top-1 and top-5 error in percent, exact for any number of ranks. A collective: every rank calls it.

        give_up: as in `evaluate_errors`.
        """
        evaluated: TrainingStep | WeightAverage | None = self.step.average if kind == AVERAGE else self.step
        assert evaluated is not None
        if kind != RECOMPUTED_BN:
            evaluated.statistics.gather_into_model(self.progress.iteration)
        with torch.compiler.set_stance("force_eager"):
            top1, top5 = evaluate_errors(
                evaluated.model,
                self.split,
                statistics=self.statistics,
                short_side=self.config.evaluation.short_side,
                crop=self.config.test_crop,
                world=self.step.world,
                loader_config=self.loader,
                precision=self.config.precision,
                give_up=give_up,
            )
        self.progress.note_val_errors(kind, top1, top5)
        return {"top1_error": top1, "top5_error": top5}
