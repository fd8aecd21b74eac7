"""Which way of decoding an evaluation's images works, on its GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.dataset import Split
from pipeline.data.ladder import Record, with_decoder
from pipeline.data.plans import evaluation_plan
from pipeline.evaluation.protocols import View
from pipeline.evaluation.scoring import EvaluationSettings
from pipeline.process.world import World, on_main
from pipeline.run.folder import read_facts


def with_working_decoder(
    settings: EvaluationSettings, split: Split, views: Sequence[View], run: Path | None, world: World
) -> EvaluationSettings:
    """Return `settings` with a loader that decodes `views` of `split`. A collective: every rank calls it.

    run: the folder of the run whose net is evaluated; its last attempt may have shown already what works. Raises UserError.
    """
    if settings.resizing is not None:  # not decoded by DALI
        return settings

    def record() -> Record | None:
        return Record.of(read_facts(run).get("attempts", [])) if run is not None else None

    plans = [evaluation_plan(split, view, settings.normalization_of(view)) for view in views]
    return replace(settings, loader=with_decoder(settings.loader, world, plans, record=on_main(world, record)))
