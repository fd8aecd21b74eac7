"""System metrics and energy in MLflow: what its tab shows, once each, whatever was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient

from pipeline.base.layout import system_file
from pipeline.meter.records import About, Sample
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.description import escape
from pipeline.tracking.state import Delivered
from tests.pipeline.tracking.mlflow_store import only_run, points, store_uri

OFFLINE = TrackingConfig(mlflow=False)
COSTS = {"co2_g_per_kwh": 400.0, "price_per_kwh": 0.5, "currency": "EUR"}
KWH = 3.6e6


@pytest.fixture
def run(runs: Path) -> Path:
    """A run that began at 1,000,000 ms."""
    folder = runs / "a"
    with open_tracker(folder, OFFLINE, name="a", params={}, tags={}) as tracker:
        tracker.log("train", 7, {"loss": 1.0})
        tracker.wanted = replace(tracker.wanted, started=1_000_000)  # type: ignore[attr-defined]
        tracker.finish("FINISHED")
    return folder


def append(folder: Path, about: About, *samples: Sample) -> None:
    path = system_file(folder, about.host, about.attempt)
    path.parent.mkdir(exist_ok=True)
    with open(path, "ab") as file:
        file.write((b"" if file.tell() else about.to_line()) + b"".join(sample.to_line() for sample in samples))


def sample(second: int, cpu: float, kwh: float) -> Sample:
    values = {"cpu_utilization_percentage": cpu, "gpu_0_power_usage_watts": 300.0}
    return Sample(time=1_000_000 + 1000 * second, seconds=second, values=values, joules={"gpu_0": kwh * KWH})


def deliver(folder: Path) -> None:
    Delivery(folder, print).deliver()


def test_samples_become_metrics_of_mlflows_tab(run: Path, runs: Path) -> None:
    append(run, About(host="a b", rank=0, attempt=1, gpus=1), sample(10, 50, 1), sample(20, 60, 2))
    append(run, About(host="node/7", rank=8, attempt=1, gpus=1, costs=COSTS), sample(11, 70, 0.5))
    deliver(run)
    uri, found = store_uri(runs), only_run(store_uri(runs))
    cpu = points(uri, found.info.run_id, "system/cpu_utilization_percentage")
    assert cpu == [(10, 50.0, 1_010_000), (20, 60.0, 1_020_000)]
    assert points(uri, found.info.run_id, "system/node_7/cpu_utilization_percentage") == [(11, 70.0, 1_011_000)]
    assert {name: value for name, value in found.data.metrics.items() if "/" not in name} == {
        "energy_kwh": 2.5,
        "co2_g": 1000,
        "cost": 1.25,
    }
    assert points(uri, found.info.run_id, "energy_kwh")[-1][0] == 7  # the newest iteration
    words = "2.5 kWh (GPUs; CPUs not measured), 1000 g CO2, 1.25 EUR"
    assert found.data.tags["energy"] == words
    assert f"Energy: {escape(words)}." in found.data.tags["mlflow.note.content"]


def test_each_sample_is_stored_once_however_often_it_is_sent(run: Path, runs: Path) -> None:
    about = About(host="a", rank=0, attempt=1, gpus=1)
    append(run, about, sample(10, 50, 1))
    deliver(run)
    before = Delivered.read(run)
    append(run, about, sample(20, 60, 2))
    deliver(run)
    append(run, About(host="a", rank=0, attempt=2, gpus=1), sample(30, 70, 0.25))
    deliver(run)
    after = Delivered.read(run)
    assert after.system == {path.name: path.stat().st_size for path in (run / "system").iterdir()}
    before.write(run)  # as after a crash
    deliver(run)
    uri, run_id = store_uri(runs), after.run_id
    name = "system/cpu_utilization_percentage"
    assert points(uri, run_id, name) == [(10, 50.0, 1_010_000), (20, 60.0, 1_020_000), (30, 70.0, 1_030_000)]
    assert MlflowClient(uri).get_run(run_id).data.metrics["energy_kwh"] == 2.25


def test_torn_lines_are_left_out_and_the_rest_is_sent(run: Path, runs: Path) -> None:
    about = About(host="a", rank=0, attempt=1)
    append(run, about, sample(10, 50, 1))
    path = system_file(run, "a", 1)
    whole = sample(20, 60, 2).to_line()
    with open(path, "ab") as file:
        file.write(whole[:30])
    deliver(run)
    assert Delivered.read(run).system[path.name] == path.stat().st_size - 30
    with open(path, "ab") as file:
        file.write(b"\n" + whole)
    (run / "system" / "b-0001.jsonl").write_text('{"host": "b"')
    deliver(run)
    uri, run_id = store_uri(runs), Delivered.read(run).run_id
    assert [step for step, *_ in points(uri, run_id, "system/cpu_utilization_percentage")] == [10, 20]


def test_what_was_not_measured_is_no_metric(run: Path, runs: Path) -> None:
    append(run, About(host="a", rank=0, attempt=1), replace(sample(10, 50, 0), joules={}))
    deliver(run)
    data = only_run(store_uri(runs)).data
    assert data.tags["energy"] == "not measured"
    assert not {"energy_kwh", "co2_g", "cost"} & data.metrics.keys()


def test_thousands_of_lines_are_sent_in_batches(run: Path, runs: Path) -> None:
    append(run, About(host="a", rank=0, attempt=1), *(sample(i, 50 + i / 1000, i) for i in range(1, 2001)))
    deliver(run)
    uri, run_id = store_uri(runs), Delivered.read(run).run_id
    assert len(points(uri, run_id, "system/cpu_utilization_percentage")) == 2000


def test_the_sums_of_the_run_are_sent_once_behind_the_lines_of_all_machines(run: Path, runs: Path) -> None:
    for number, second in enumerate((30, 10, 20)):
        append(run, About(host=f"node{number}", rank=number, attempt=1, gpus=1), sample(second, 50, 1))
    deliver(run)
    uri, run_id = store_uri(runs), Delivered.read(run).run_id
    assert points(uri, run_id, "energy_kwh") == [(7, 3.0, 1_030_000)]


def test_sums_that_were_not_sent_are_sent_by_the_next_delivery(
    run: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(run, About(host="a", rank=0, attempt=1, gpus=1), sample(10, 50, 1))
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr("pipeline.tracking.system._send_sums", Mock(side_effect=ConnectionError))
        deliver(run)
    deliver(run)
    assert points(store_uri(runs), Delivered.read(run).run_id, "energy_kwh") == [(7, 1.0, 1_010_000)]
