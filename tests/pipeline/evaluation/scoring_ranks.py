"""What the ranks of test_protocols.py and test_evaluate_command.py do."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

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


def evaluate_as_typed(world: World, arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard output of python -m pipeline.evaluate as one rank of several."""
    from pipeline import evaluate

    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = evaluate.main(arguments)
    return code or 0, output.getvalue()
