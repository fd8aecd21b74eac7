"""The Python in the documents runs as it is printed, in a folder that looks like a checkout with runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import export
from pipeline.base.layout import checkpoints_in
from pipeline.data.dataset import Dataset
from pipeline.evaluation.scores import Scores, save
from pipeline.handover.model_folder import write_model
from pipeline.run.options import load
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.delivery import Delivery
from pipeline.training.checkpoint import read_verified
from tests.helpers import ROOT
from tests.images import encode, photograph
from tests.pages import PAGES, name_of, read
from tests.pipeline.evaluation.conftest import ten_classes  # noqa: F401
from tests.pipeline.evaluation.nets_and_images import provenance, random_softmax, write_run
from tests.pipeline.tracking.conftest import empty_store  # noqa: F401

ELSEWHERE = {
    "docs/contracts.md": "tests/test_contracts.py runs its formulas",
    "docs/python.md": "tests/test_python_page.py runs it from top to bottom",
}
ITERATIONS, IMAGES = 600_000, 150


@pytest.fixture(scope="module")
def checkout(
    ten_classes: Dataset,  # noqa: F811
    empty_store: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """runs/resnet50-seed0 with metrics, scores and model; runs/mlflow.db with resnet152@best; picture.jpg. Nets are small."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs")
    (folder / "picture.jpg").write_bytes(encode(photograph(0, 300, 400)))
    run = write_run(folder / "runs", "resnet50-seed0", ten_classes, iteration=ITERATIONS, sizes=(256, 224))
    table = random_softmax(np.random.default_rng(0), IMAGES, 10)
    made = Scores(
        scores=table,
        ids=np.arange(IMAGES),
        labels=ten_classes.split("train").labels,
        provenance=provenance("ten-crop", iteration=ITERATIONS),
    )
    save(made, run / f"scores/ten-crop-val-{ITERATIONS:08d}.npz")
    ((_, path),) = checkpoints_in(run / "checkpoints")
    checkpoint = read_verified(path)
    with open_tracker(run, TrackingConfig(mlflow=False), name=run.name, params={}, tags={}) as tracker:
        tracker.log("val", ITERATIONS, {"top1_error": 25.0, "top5_error": 7.0})
        tracker.artifact(path, "checkpoints")
        write_model(run, load(run / "config.yaml"), ten_classes, checkpoint)
        tracker.finish("FINISHED")
    Delivery(run, print).deliver()
    out = ["--out", str(folder / "exported"), "--format", "safetensors"]
    assert export.main([str(run), *out, "--register", "resnet152", "--alias", "best"]) == 0
    return folder


@pytest.fixture
def _as_a_user(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import mlflow

    monkeypatch.chdir(checkout)
    mlflow.set_tracking_uri(None)  # a snippet says where MLflow is
    yield
    mlflow.set_tracking_uri(None)


def snippets(page: Path) -> list[str]:
    return [block for language, block in read(page).blocks if language == "python"]


def test_the_documents_hold_python() -> None:
    assert sum(len(snippets(page)) for page in PAGES if name_of(page) not in ELSEWHERE) >= 5
    assert all(snippets(ROOT / page) for page in ELSEWHERE)


@pytest.mark.usefixtures("_as_a_user")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own use of SQLAlchemy
@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES if name_of(page) not in ELSEWHERE for number in range(len(snippets(page)))],
    ids=lambda value: name_of(value) if isinstance(value, Path) else str(value),
)
def test_a_snippet_runs_as_it_is_printed(page: Path, number: int, checkout: Path) -> None:
    before = sorted(path.name for path in checkout.iterdir())
    names: dict[str, Any] = {}
    exec(snippets(page)[number], names)
    assert sorted(path.name for path in checkout.iterdir()) == before, "no store was made where the user stands"
    if "val" in names:
        assert names["val"] == [(ITERATIONS, 25.0)]
    if "scores" in names and isinstance(names["scores"], np.ndarray | torch.Tensor):
        scores = torch.as_tensor(names["scores"]).detach()
        assert tuple(scores.shape) == (1, 10)
        np.testing.assert_allclose(float(scores.sum()), 1, atol=1e-5)
