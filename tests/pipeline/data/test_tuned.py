"""What was tuned for a machine: stored, found again, and taken by loaders where their config leaves a value open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.command import UserError
from pipeline.base.cores import available_cores
from pipeline.data import tuned
from pipeline.data.batch import LoaderConfig, Queues
from pipeline.data.tuned import Machine, Tuned
from tests.ranks import ALONE

QUEUES = Queues(threads=3, read_threads=5, read_ahead=6, decode_ahead=7, ready=8)
FOUND = Tuned(
    machine=Machine.of(torch.device("cpu"), 1),
    decode_on="cpu",
    queues=QUEUES,
    images_per_second=120.5,
    untuned_images_per_second=100.0,
    measured="2026-11-27",
)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "configs" / "loader.yaml")
    yield tuned.FILE


def test_findings_come_back_as_they_were_stored(file: Path) -> None:
    gpu = replace(FOUND, machine=Machine(device="NVIDIA H100 80GB HBM3", cores=16), decode_on="gpu-whole")
    assert tuned.read() == () and tuned.find(FOUND.machine) is None
    assert tuned.store(gpu) == tuned.store(FOUND) == file
    assert tuned.find(FOUND.machine) == FOUND and tuned.find(gpu.machine) == gpu
    assert tuned.find(replace(gpu.machine, cores=8)) is None
    again = replace(FOUND, images_per_second=130.0)
    tuned.store(again)
    assert set(tuned.read()) == {gpu, again}


@pytest.mark.parametrize("text", ["tuned: 5", "no yaml: [", "other: 1", "tuned:\n- decode_on: 7\n"])
def test_a_damaged_file_gets_a_sentence(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UserError, match=r"loader\.yaml.* remove the file and tune again with python -m pipeline\.tune"):
        tuned.with_queues(LoaderConfig(), ALONE)


def test_built_in_values_hold_where_nothing_was_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    cores = available_cores()
    built_in = LoaderConfig(threads=cores, read_threads=16, read_ahead=2, decode_ahead=2, ready=2)
    assert tuned.with_queues(LoaderConfig(), ALONE) == built_in
    assert tuned.with_queues(LoaderConfig(), replace(ALONE, cores=1)).threads == 1
    assert capsys.readouterr().err == ""
    assert LoaderConfig().queues == built_in.queues  # for a loader that no command has settled


def test_a_loader_takes_what_was_tuned_and_explicit_keys_win(capsys: pytest.CaptureFixture[str]) -> None:
    tuned.store(FOUND)
    assert tuned.with_queues(LoaderConfig(), ALONE).queues == QUEUES
    assert "loader: threads 3, read_threads 5" in capsys.readouterr().err
    given = tuned.with_queues(LoaderConfig(threads=1, ready=1), ALONE)
    assert given.queues == replace(QUEUES, threads=1, ready=1)
    assert "threads 3" not in (said := capsys.readouterr().err) and "read_threads 5" in said
    assert tuned.with_queues(LoaderConfig(), replace(ALONE, rank=1, size=2)).queues == QUEUES
    assert capsys.readouterr().err == ""  # only the main rank says so


def test_another_share_of_the_cores_is_another_machine() -> None:
    tuned.store(replace(FOUND, machine=replace(FOUND.machine, cores=available_cores() + 1)))
    assert tuned.with_queues(LoaderConfig(), ALONE).queues == Queues(threads=available_cores())
