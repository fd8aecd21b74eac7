"""The command `pipeline.tune`: it measures, stores what it found for this machine, and loaders find it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.data import tuned
from pipeline.data.augment import AugmentConfig
from pipeline.data.batch import LoaderConfig
from pipeline.data.decoders import RUNGS
from pipeline.data.probe import Probe
from pipeline.data.tuned import Machine
from pipeline.run.config import Config
from pipeline.tune import Speed, main, space, working_rungs
from tests.images import encode, photograph
from tests.patience import limit
from tests.pipeline.data.emulated_decoders import Emulated
from tests.pipeline.data.small_datasets import statistics_of_size, write_dataset
from tests.ranks import ALONE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "loader.yaml")
    return tuned.FILE


@pytest.mark.costly("measures a loader for three seconds with every core")
def test_what_it_finds_is_stored_and_taken(digits: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    assert main([str(digits), "--seconds", "3", "--device", "cpu", "--batch", "4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = tuned.find(Machine.of(CPU, 1))
    assert found is not None and found.queues.threads >= 1 and found.decode_on == "cpu"
    assert figures["images_per_second"] == found.images_per_second > 0 and figures["file"] == str(file)
    assert tuned.with_queues(LoaderConfig(), ALONE).queues == found.queues
    assert os.sched_getaffinity(0) == cores


def test_a_split_that_is_kept_in_memory_is_not_tuned(digits: Path, tmp_path: Path, file: Path) -> None:
    recipe = tmp_path / "cifar.yaml"
    recipe.write_text("augment: {kind: pad-crop, crop: 48, pad: 4}\n")
    with pytest.raises(UserError, match="kept in memory"):
        main([str(digits), "--config", str(recipe), "--device", "cpu"])
    assert not file.exists()


def test_the_space_starts_with_the_built_in_values_and_keeps_the_promise() -> None:
    start, axes = space(["cpu"], 16)
    built_in = LoaderConfig(threads=16).queues
    assert {key: start[key] for key in ("threads", "read_threads", "read_ahead", "decode_ahead", "ready")} == vars(
        built_in
    )
    for axis in axes:
        keys = set(axis[0])
        assert {key: start[key] for key in keys} in axis or keys == {"decode_on", "hw_decoder_load", "threads"}
    first, ways = space(RUNGS, 8)
    assert (first["decode_on"], first["hw_decoder_load"]) == ("gpu", 1.0)
    assert {(way["decode_on"], way["hw_decoder_load"]) for way in ways[0]} == {
        ("gpu", 1.0), ("gpu", 0.0), ("gpu-whole", 1.0), ("gpu-whole", 0.0), ("cpu", 1.0),
    }  # fmt: skip


def test_rungs_that_fail_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(augment=AugmentConfig(short_side=(72, 96), crop=64))
    split = write_dataset(tmp_path / "data", [encode(photograph(i, 90, 120)) for i in range(4)]).split("train")
    dataset = Mock(statistics=statistics_of_size(64))
    speed = Speed(split, dataset, config, torch.device("cuda", 0), rows=8)
    assert working_rungs(speed, Probe(limit(60), Emulated({"gpu": "crash"}))) == ("gpu-whole", "cpu")
    assert "gpu is left out: killed by SIGSEGV" in capsys.readouterr().err
    with pytest.raises(UserError, match="no decoder works"):
        working_rungs(speed, Probe(limit(60), Emulated(dict.fromkeys(RUNGS, "crash"))))


def test_ranks_share_the_cores() -> None:
    assert Machine.of(CPU, 1).cores == available_cores() and Machine.of(CPU, 10**6).cores == 1
