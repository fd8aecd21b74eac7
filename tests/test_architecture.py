"""The import contract: layers run one way, there is no circle, and no string names a module of a higher layer.

tests/imports.py reads the source; tests/test_imports.py tries it on small trees.
"""

from __future__ import annotations

from tests.commands import PACKAGES
from tests.helpers import ROOT
from tests.imports import Contract, Source, broken, circles, sentences

# Lowest first. A module imports from its own group and from lower layers alone. A layer has one or several groups, one a
# line, which do not import from one another. `a.b` is that module, `a.b.*` the package a.b and
# all in it that no other line names.
LAYERS: dict[str, list[str]] = {
    "foundations": [
        "pipeline pipeline.signals pipeline.command pipeline.files pipeline.cores",
    ],
    "format": [
        "pipeline.data.dataset",
    ],
    "process": [
        "pipeline.watchdog pipeline.lease pipeline.world",
    ],
    "parts": [
        "pipeline.data.*",
        "pipeline.models.*",
        "pipeline.training.*",
        "pipeline.tracking.*",
        "pipeline.analysis pipeline.analysis.figures",
    ],
    "runs and scores": [
        "pipeline.config pipeline.scaling pipeline.options pipeline.run_folder pipeline.summary",
        "pipeline.evaluation pipeline.evaluation.inference pipeline.evaluation.definitions pipeline.evaluation.partial"
        " pipeline.evaluation.protocols pipeline.evaluation.scores pipeline.evaluation.ensemble"
        " pipeline.evaluation.mistakes pipeline.evaluation.submission pipeline.evaluation.exporting"
        " pipeline.evaluation.registry",
    ],
    "trained nets": [
        "pipeline.trainer",
        "pipeline.evaluation.nets pipeline.evaluation.datasets pipeline.evaluation.foreign pipeline.evaluation.options"
        " pipeline.evaluation.score_files pipeline.evaluation.members pipeline.evaluation.model_card",
        "pipeline.analysis.responses",
        "pipeline.analysis.runs",
    ],
    "commands": [
        "pipeline.train",
        "pipeline.evaluate",
        "pipeline.ensemble",
        "pipeline.submit",
        "pipeline.mistakes",
        "pipeline.export",
        "pipeline.responses",
        "pipeline.curves",
    ],
    "experiments": [
        "pipeline.experiments.*",
    ],
    "the paper's tables": [
        "pipeline.experiment",
        "pipeline.report pipeline.analysis.page pipeline.analysis.panels pipeline.analysis.paper"
        " pipeline.analysis.records pipeline.analysis.results",
    ],
    "launchers and preparation": [
        "launch.*",
        "data_prep.*",
    ],
    "benchmarks": [
        "bench.*",
    ],
    "tests": [
        "tests.*",
    ],
}

# Groups that import from fewer layers than lie below them.
ONLY: dict[str, tuple[str, ...]] = {
    "data_prep.*": ("foundations", "format"),  # preparing data takes no torch
}

_MOVES = "to do: pipeline/experiments belongs above launch/"
_ADVICE = "a sentence that tells people what to type, kept in a variable or written to a file"
EXCEPTIONS: dict[tuple[str, str], str] = {  # (module, what it names): why it may
    ("pipeline.evaluation.model_card", "pipeline.evaluate"): _ADVICE,
    ("pipeline.train", "launch.local"): _ADVICE,
    ("launch.plan", "bench.step"): _ADVICE,
    ("pipeline.experiments.launching", "launch.local"): _MOVES,
    ("pipeline.experiments.launching", "launch.slurm"): _MOVES,
    ("pipeline.experiments.launching", "launch.ray_train"): _MOVES,
    ("pipeline.experiments.runner", "launch.slurm_command"): _MOVES,
    ("pipeline.experiments.runner", "launch.status"): _MOVES,
    (
        "bench.pixels",
        "tests.pipeline.data.pillow_reference",
    ): "the Pillow reference moves to bench/, tests import it there",
}

SOURCE = Source(ROOT, PACKAGES)
CONTRACT = Contract(LAYERS, ONLY)


def test_every_module_is_in_one_layer() -> None:
    faults = list(CONTRACT.faults_of_table(SOURCE.files))
    assert not faults, sentences(faults)
    assert not (missing := set(ONLY) - {group for _, _, group in CONTRACT.entries}), f"ONLY names no group: {missing}"


def test_layers_run_one_way() -> None:
    faults = broken(SOURCE, CONTRACT, EXCEPTIONS)
    assert not faults, sentences(faults)


def test_no_circle() -> None:
    assert not (found := circles(SOURCE)), sentences(f"modules import one another: {circle}" for circle in found[:5])
