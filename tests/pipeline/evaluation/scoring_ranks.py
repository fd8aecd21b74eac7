"""What the ranks of test_protocols.py and test_evaluate_command.py do."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

from pipeline.data.conventions import PYCLS
from pipeline.data.dataset import Dataset
from pipeline.evaluation.protocols import find
from pipeline.evaluation.scores import save
from pipeline.evaluation.scoring import evaluate_errors, score_split
from pipeline.process.world import World
from tests.pipeline.evaluation.nets_and_images import LOADER, SmallNet, provenance, settings


def score(world: World, folder: Path, protocols: list[str], out: Path) -> tuple[float, float]:
    """Write out/PROTOCOL-SIZE.npz for each protocol; the errors that the trainer would be told."""
    dataset = Dataset(folder)
    split = dataset.split("train")
    net = SmallNet(dataset.classes, stride=4).eval()
    for name in protocols:
        scored = score_split(
            net, split, find(name), settings(36, 32, dataset.statistics),
            world=world, classes=dataset.classes, provenance=provenance(name, split="train"),
        )  # fmt: skip
        assert (scored is not None) == world.is_main
        if scored is not None:
            save(scored.scores, out / f"{name}-{world.size}.npz")
    return evaluate_errors(
        net, split, statistics=dataset.statistics, short_side=36, crop=32, world=world, loader_config=LOADER
    )


def score_as_pycls(world: World, folder: Path, protocols: list[str], out: Path) -> None:
    """Write out/PROTOCOL-SIZE.npz for each protocol, with the pixels that pycls's nets get."""
    dataset = Dataset(folder)
    net = SmallNet(dataset.classes, stride=4).eval()
    as_pycls = replace(settings(36, 32, dataset.statistics), resizing=PYCLS.resizing)
    for name in protocols:
        scored = score_split(
            net, dataset.split("train"), find(name), as_pycls,
            world=world, classes=dataset.classes, provenance=provenance(name, split="train", preprocessing="pycls"),
        )  # fmt: skip
        if scored is not None:
            save(scored.scores, out / f"{name}-{world.size}.npz")


def evaluate_as_typed(world: World, arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard output of python -m pipeline.evaluate as one rank of several."""
    from pipeline import evaluate

    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = evaluate.main(arguments)
    return code or 0, output.getvalue()
