"""Real images and ImageNet weights: our evaluation chooses the classes that the origins' own code chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.agreement import CASES, class_folders, efficientnet, net_of, our_scores, shard, their_scores
from tests.images import real_images


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.resizing is not None])
def test_the_origins_code_chooses_the_same_class(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    for place, encoded in real_images():
        file = tmp_path / "images" / Path(place).parent.name / Path(place).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded)
    files = class_folders(tmp_path / "images", tmp_path / "linked")
    dataset = shard(tmp_path / "linked", tmp_path / "data")
    keys = [key.decode().rsplit("/", 1)[-1] for key in dataset.split("train").samples["key"].tolist()]
    net = net_of(case, efficientnet())
    ours, theirs = our_scores(net, dataset, case, threads=1), their_scores(net, [files[key] for key in keys], case)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.999
    assert np.abs(ours - theirs).max() < 2e-2
    assert (theirs.max(axis=1) > 0.5).mean() > 0.5, "the net knows what the images show"
