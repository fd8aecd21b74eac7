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
    "base": [
        "pipeline.base.*",
    ],
    "dataset folders and the meter": [
        "pipeline.data.dataset pipeline.data.sample_table pipeline.data.shards",
        # Pictures and one image, without torch.
        "pipeline.data.images pipeline.data.folders pipeline.data.whole pipeline.data.dali_errors",
        "pipeline.data.conventions",
        "pipeline.meter.*",
    ],
    "process": [
        "pipeline.process.*",
    ],
    "parts": [
        "pipeline.data.*",
        "pipeline.models.*",
        "pipeline.training.*",
        "pipeline.tracking.*",
        "pipeline.evaluation.config",
    ],
    "run": [
        "pipeline.run.*",
    ],
    "evaluation": [
        "pipeline.evaluation.*",
    ],
    "loop and handover": [
        "pipeline.loop.*",
        "pipeline.handover.*",
    ],
    "weights to start from": [
        "pipeline.initial.*",
    ],
    "what `import pipeline` offers": [
        "pipeline",
    ],
    "command lines": [
        "pipeline.command_lines.*",
    ],
    "commands": [
        "pipeline.train",
        "pipeline.evaluate",
        "pipeline.ensemble",
        "pipeline.submit",
        "pipeline.mistakes",
        "pipeline.export",
        "pipeline.predict",
        "pipeline.responses",
        "pipeline.tune",
    ],
    "launchers and preparation": [
        "launch.*",
        "data_prep.*",
    ],
    "the paper": [
        "paper.* pipeline.experiment pipeline.report pipeline.curves",  # the last three only name the commands in paper/
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
    "data_prep.*": ("base", "dataset folders and the meter"),  # preparing data takes no torch
}

SOURCE = Source(ROOT, PACKAGES)
CONTRACT = Contract(LAYERS, ONLY)


def test_every_module_is_in_one_layer() -> None:
    faults = list(CONTRACT.faults_of_table(SOURCE.files))
    assert not faults, sentences(faults)
    assert not (missing := set(ONLY) - {group for _, _, group in CONTRACT.entries}), f"ONLY names no group: {missing}"


def test_layers_run_one_way() -> None:
    faults = broken(SOURCE, CONTRACT, {})
    assert not faults, sentences(faults)


def test_no_circle() -> None:
    assert not (found := circles(SOURCE)), sentences(f"modules import one another: {circle}" for circle in found[:5])
