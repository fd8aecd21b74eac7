"""What MLflow shows of a run: the view of its experiment, its dataset, its description. What users change stays theirs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from mlflow import MlflowClient

from pipeline.base.layout import TRACKING
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.data.dataset import ClassInfo, Manifest, ShardInfo, SplitInfo
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.tracking import TrackingConfig, log_evaluations, log_result_run, mlflow_run_id, open_tracker, view
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.description import MemberRun, describe, escape
from pipeline.tracking.inputs import dataset_facts
from pipeline.tracking.state import Delivered, Wanted
from tests.pipeline.tracking.mlflow_store import only_run, points, runs_in, store_uri

OFFLINE = TrackingConfig(mlflow=False)
PARAMS = {"arch": "resnet8", "batch": 64, "iterations": 400, "data": "demo/dataset", "optimizer": {"lr": 0.1 + 0.2}}
TAGS = {"arch": "resnet8", "launcher": "local", "world_size": "2", "dataset_sha256": "ab" * 32}


def manifest(name: str = "digits") -> Manifest:
    """A dataset of 1,442 and 355 images in 10 classes."""
    splits = {}
    for split, samples in (("train", 1442), ("val", 355)):
        file = f"{split}/{name}-{split}-000000.tar"
        shard = ShardInfo(file=file, samples=samples, bytes=1, sha256="", index_sha256="")
        splits[split] = SplitInfo(samples=samples, table="", table_sha256="", shards=(shard,))
    return Manifest(seed=0, classes=tuple(ClassInfo(wnid=str(number)) for number in range(10)), splits=splits)


def train(folder: Path, *, name: str = "", dataset: dict[str, Any] | None = None) -> Path:
    tracker = open_tracker(folder, OFFLINE, name=name or folder.name, params=PARAMS, tags=TAGS, dataset=dataset)
    with tracker as run:
        for iteration in (20, 40):
            values = {"loss": 1 / iteration, "top1_error": 100 / iteration, "images_per_second": 320.0}
            run.log("train", iteration, values)
        run.log("val", 40, {"top1_error": 100 * 6 / 355, "top5_error": 0.0})
        run.finish("FINISHED")
    return folder


def deliver(folder: Path) -> Any:
    """The MLflow run of a run folder, brought up to date by another process than the last time."""
    Delivery(folder, print).deliver()
    return MlflowClient(store_uri(folder.parent)).get_run(str(mlflow_run_id(folder)))


def note(run: Any) -> str:
    return run.data.tags["mlflow.note.content"]


def experiment(runs: Path) -> Any:
    return MlflowClient(store_uri(runs)).get_experiment_by_name("resnet")


def unpacked(tag: str) -> dict[str, Any]:
    """A shared view as MLflow's page unpacks it: base64 of zlib."""
    state = json.loads(tag)["state"]
    assert state.startswith("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))))


def test_the_experiment_has_a_view_of_the_errors(runs: Path) -> None:
    deliver(train(runs / "a"))
    tags = experiment(runs).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    state = unpacked(tags["mlflow.sharedViewState.errors"])
    shown = [
        f"metrics.`{kind}/top1_error`" for kind in ("ten-crop-val", "center-val", "multi-scale-val", "val", "train")
    ]
    assert state["selectedColumns"][:6] == [*shown, "params.`arch`"]
    assert not [column for column in state["selectedColumns"] if column.startswith("attributes.")]
    sections = [section["name"] for section in state["compareRunSections"]]
    assert sections == ["1. Learning curves", "2. Evaluations", "3. Timing", "Model metrics", "System metrics"]
    first = state["compareRunCharts"][0]
    assert first["selectedMetricKeys"] == ["train/top1_error", "val/top1_error"] and first["type"] == "LINE"
    charts = {chart["metricKey"]: chart["type"] for chart in state["compareRunCharts"]}
    for protocol in PROTOCOLS:
        assert charts[f"{protocol}-val/top1_error"] == charts[f"{protocol}-test-ema/top5_error"] == "BAR"
    assert {"train/loss", "train/lr", "epoch", "seconds_left"} <= set(charts)
    assert len(tags["mlflow.sharedViewState.errors"]) < 5000  # what older servers take


def test_an_older_experiment_gets_the_view_and_a_users_view_stays(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(store_uri(runs))
    key = client.create_experiment(
        "resnet", tags={"mlflow.sharedViewState.mine": "x", "mlflow.experimentKind": "other"}
    )
    deliver(train(runs / "a"))
    first = experiment(runs).tags
    assert first["mlflow.sharedViewState.mine"] == "x" and first["mlflow.experimentKind"] == "other"
    ours = first["mlflow.sharedViewState.errors"]
    monkeypatch.setattr(view, "VERSION", view.VERSION + 1)
    deliver(runs / "a")
    second = experiment(runs).tags["mlflow.sharedViewState.errors"]
    assert second != ours and unpacked(second) == unpacked(ours)
    client.set_experiment_tag(key, "mlflow.sharedViewState.errors", '{"name": "by hand"}')
    monkeypatch.setattr(view, "VERSION", view.VERSION + 1)
    deliver(runs / "a")
    assert experiment(runs).tags["mlflow.sharedViewState.errors"] == '{"name": "by hand"}'


def test_the_dataset_is_an_input_of_the_run_once(runs: Path) -> None:
    facts = dataset_facts(manifest(), TAGS["dataset_sha256"], "demo/dataset")
    folder = train(runs / "a", dataset=facts)
    for _ in range(2):
        (one,) = deliver(folder).inputs.dataset_inputs
    assert (one.dataset.name, one.dataset.digest) == ("digits", "ab" * 8)
    assert json.loads(one.dataset.profile) == {"train images": 1442, "val images": 355, "classes": 10}
    assert json.loads(one.dataset.source) == {"uri": "demo/dataset"} and one.dataset.source_type == "local"
    assert [(tag.key, tag.value) for tag in one.tags] == [("mlflow.data.context", "training")]


@pytest.mark.parametrize("there", [True, False])
def test_an_older_run_gets_its_dataset_too(runs: Path, tmp_path: Path, there: bool) -> None:
    text = manifest("flowers").to_json()
    (tmp_path / "flowers-224").mkdir()
    if there:
        (tmp_path / "flowers-224" / "manifest.json").write_text(text)
    tags = {"arch": "resnet8", "dataset_sha256": hashlib.sha256(text.encode()).hexdigest()}
    params = {"data": str(tmp_path / "flowers-224")}
    with open_tracker(runs / "a", OFFLINE, name="a", params=params, tags=tags) as run:
        run.finish("FINISHED")
    wanted = json.loads((runs / "a" / "tracking.json").read_text())
    for key in ("dataset", "command"):  # as an earlier version wrote it
        del wanted[key]
    del wanted["tags"]["kind"]
    (runs / "a" / "tracking.json").write_text(json.dumps(wanted))
    run = deliver(runs / "a")
    (one,) = run.inputs.dataset_inputs
    assert (
        one.dataset.name == ("flowers" if there else "flowers-224")
        and one.dataset.digest == tags["dataset_sha256"][:16]
    )
    assert run.data.tags["kind"] == "training"


def test_epoch_and_seconds_left_stand_beside_the_train_points(runs: Path) -> None:
    folder = train(runs / "a", dataset=dataset_facts(manifest(), TAGS["dataset_sha256"], "demo/dataset"))
    run = deliver(folder)
    uri, run_id = store_uri(runs), run.info.run_id
    assert [point[:2] for point in points(uri, run_id, "epoch")] == [(20, 0.887656), (40, 1.77531)]  # 20 * 64 / 1442
    assert [point[:2] for point in points(uri, run_id, "seconds_left")] == [(20, 76.0), (40, 72.0)]  # 380 * 64 / 320
    assert run.data.metrics["val/top1_error"] == 1.6901 and run.data.metrics["train/loss"] == 0.025
    assert run.data.params["optimizer.lr"] == "0.3"
    assert "0.30000000000000004" in (folder / "tracking.json").read_text()
    assert "epoch" not in (folder / "metrics.jsonl").read_text()


def test_a_run_from_before_numbers_were_shortened_has_not_changed(runs: Path) -> None:
    folder = train(runs / "a")
    client = MlflowClient(store_uri(runs))
    key = Wanted.read(folder).key  # type: ignore[union-attr]
    run = client.create_run(client.create_experiment("resnet"), tags={"run_key": key})
    client.log_param(run.info.run_id, "optimizer.lr", "0.30000000000000004")
    assert not [tag for tag in deliver(folder).data.tags if tag.startswith("changed.")]


def test_the_description_says_what_the_run_is(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_COMMAND", "python launch/local.py --config configs/demo.yaml --procs 2")
    folder = train(runs / "a", dataset=dataset_facts(manifest(), TAGS["dataset_sha256"], "demo/dataset"))
    before = note(deliver(folder))
    assert "**resnet8** on **digits** (1,442 train and 355 val images, 10 classes)" in before
    assert "400 updates of 64 images, 17.75 epochs" in before
    assert "| error % | val |\n|---|---|\n| top-1 | 1.69 |\n| top-5 | 0.00 |" in before
    assert "```\npython launch/local.py --config configs/demo.yaml --procs 2\n```" in before
    assert "Started by this command, which also goes on" in before and f"Folder: `{folder}`" in before
    log_evaluations(folder, OFFLINE, 40, {"ten-crop-val": {"top1_error": 400 / 355, "top5_error": 0.25}})
    after = note(deliver(folder))
    assert (
        "| error % | ten\\-crop\\-val | val |\n|---|---|---|\n| top-1 | 1.13 | 1.69 |\n| top-5 | 0.25 | 0.00 |" in after
    )


def test_a_description_that_a_user_wrote_stays(runs: Path) -> None:
    folder = train(runs / "a")
    client, run = MlflowClient(store_uri(runs)), deliver(folder)
    for text in ("my own words", ""):
        client.set_tag(run.info.run_id, "mlflow.note.content", text)
        log_evaluations(folder, OFFLINE, 40, {"center-val": {"top1_error": float(len(text)), "top5_error": 0.0}})
        (folder / "mlflow.json").unlink()  # what is remembered lies in MLflow
        assert note(deliver(folder)) == text


def test_a_description_from_before_ours_stays(runs: Path) -> None:
    folder = train(runs / "a")
    client = MlflowClient(store_uri(runs))
    key = Wanted.read(folder).key  # type: ignore[union-attr]
    run = client.create_run(client.create_experiment("resnet"), tags={"run_key": key})
    client.set_tag(run.info.run_id, "mlflow.note.content", "the best one")
    assert note(deliver(folder)) == "the best one"


def ensemble(runs: Path, members: dict[str, str | None]) -> Path:
    texts = [f"{name} ({run_id})" if run_id else name for name, run_id in members.items()]
    tags = {"arch": "ensemble"} | {f"member.{number}": text for number, text in enumerate(texts, start=1)}
    metrics = {"center-val": {"top1_error": 1.5, "top5_error": 0.5}}
    log_result_run(runs / "e", OFFLINE, name="e", kind="ensemble", params={}, metrics=metrics, tags=tags)
    return runs / "e"


def test_an_ensemble_links_its_members(runs: Path) -> None:
    for name, error in (("a", 3.0), ("b", 4.0)):
        log_evaluations(train(runs / name), OFFLINE, 40, {"center-val": {"top1_error": error, "top5_error": 1.0}})
        deliver(runs / name)
    ids = {name: mlflow_run_id(runs / name) for name in "ab"}
    run = deliver(ensemble(runs, {"a": ids["a"], "b": "0" * 32, "gone": "1" * 32}))  # as from another MLflow
    assert [run.data.tags[f"member.{number}"] for number in (1, 2, 3)] == [f"a ({ids['a']})", f"b ({ids['b']})", "gone"]
    text, place = note(run), f"#/experiments/{run.info.experiment_id}/runs"
    links = {name: f"{place}/{run_id}?workflowType=machine_learning" for name, run_id in ids.items()}
    rows = [f"| [a]({links['a']}) | 3.00 |", f"| [b]({links['b']}) | 4.00 |", "| gone | - |"]
    assert "\n".join(["| **ensemble** | 1.50 |", *rows]) in text
    kinds = {one.info.run_name: one.data.tags["kind"] for one in runs_in(store_uri(runs))}
    assert kinds == {"a": "training", "b": "training", "e": "ensemble"}


def test_a_result_took_as_long_as_its_command(runs: Path) -> None:
    arguments: dict[str, Any] = {"name": "e", "kind": "report", "params": {}, "metrics": {}, "tags": {"arch": "report"}}
    begun = 1_700_000_000_000
    log_result_run(runs / "e", OFFLINE, **arguments, started=begun)
    first = Wanted.read(runs / "e")
    assert first is not None and first.ended is not None and first.started == begun and first.ended > begun
    log_result_run(runs / "e", OFFLINE, **arguments)  # made again, years later, in no time
    again = Wanted.read(runs / "e")
    assert again is not None and again.ended is not None
    assert again.started == begun and 0 <= again.ended - begun < first.ended - begun


def test_text_is_shown_as_it_is() -> None:
    assert escape("a_b*c|d") == r"a\_b\*c\|d"
    assert escape("<b>&\n[x](y)") == r"&lt;b&gt;&amp; \[x\]\(y\)"


EVIL = (
    "<img src=x onerror=alert(1)>",
    "</code><script>alert(1)</script>",
    "[a](javascript:alert(1))",
    "![a](http://elsewhere/a.png)",
    "``` x\n\n<b>b</b>\n```",
    "a | b\n\n# heading\n\n<i>i</i>",
    "https://elsewhere/",
    "<https://elsewhere/>",
)


@pytest.mark.parametrize("evil", EVIL)
def test_no_name_is_markup_in_a_description(evil: str) -> None:
    """As a Markdown renderer that lets HTML through shows it: no element but those of the description without it."""

    def elements(name: str) -> list[str]:
        facts = {"name": name, "sha256": "a", "place": name, "classes": 2, "splits": {name: 3}}
        wanted = Wanted("k", name, "e", None, 0, params={"arch": name}, command=f"train {name}")
        member = MemberRun(name=name, run_id="ab", experiment_id="1", errors={name: (1.0, 2.0)})
        texts = [
            describe(wanted, kind, facts, {name: (1.0, 2.0)}, [member], Path("/runs") / name, energy=name)
            for kind in ("training", "ensemble")
        ]
        shown = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render("\n\n".join(texts))
        return re.findall(r"<(\w+)", shown)

    assert sorted(set(elements(evil))) == sorted(set(elements("plain")))
    assert elements(evil).count("a") == elements("plain").count("a") == 1


def test_the_description_says_what_a_run_starts_from() -> None:
    start = "runs/x_y (iteration 400, final weights, SHA-256 0123...): 36 of 38 tensors"
    wanted = Wanted("k", "fine", "e", None, 0, params={"arch": "resnet8"}, tags={"starts_from": start})
    texts = [describe(one, "training", {}, {}, [], Path("/runs/fine")) for one in (wanted, replace(wanted, tags={}))]
    shown, plain = (MarkdownIt("commonmark").render(text) for text in texts)
    assert f"Starts from {start}." in shown and "Starts from" not in plain


def test_odd_names_break_no_description(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_COMMAND", "python x --name '```' '<script>'")
    facts = dataset_facts(manifest("<img src=x onerror=alert(1)>"), TAGS["dataset_sha256"], "x")
    text = note(deliver(train(runs / "a", dataset=facts)))
    assert r"**&lt;img src=x onerror=alert\(1\)&gt;**" in text
    assert "````\npython x --name '```' '<script>'\n````" in text  # in a block of code the page escapes it


def test_a_long_description_is_cut(runs: Path) -> None:
    tags = {"arch": "ensemble"} | {f"member.{number}": "m" * 200 for number in range(1, 100)}
    metrics = {"center-val": {"top1_error": 1.5}}
    log_result_run(runs / "e", OFFLINE, name="e", kind="ensemble", params={}, metrics=metrics, tags=tags)
    assert len(note(deliver(runs / "e"))) == 8000


def test_runs_have_colours_of_their_own(runs: Path) -> None:
    """MLflow's page takes them from these tags, else from a hash that gave the demo's two nets one colour."""
    colors = {deliver(train(runs / name)).data.tags["mlflow.runColor"] for name in ("a", "b", "c")}
    assert len(colors) == 3 and all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)


def test_what_is_described_is_remembered(runs: Path) -> None:
    deliver(train(runs / "a"))
    assert Delivered.read(runs / "a").look > 0 and only_run(store_uri(runs))


def test_no_password_reaches_mlflow(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND_VARIABLE, "python -m pipeline.train --tracking.uri http://me:secret@there")
    params = {**PARAMS, "tracking": {"uri": "http://me:secret@there"}, "data": "s3://me:secret@bucket/digits"}
    facts = dataset_facts(manifest(), "ab" * 32, params["data"])
    with open_tracker(runs / "a", OFFLINE, name="a", params=params, tags=TAGS, dataset=facts) as tracker:
        tracker.finish("FINISHED")
    assert "secret" not in (runs / "a" / TRACKING).read_text()
    run = deliver(runs / "a")
    assert run.data.params["tracking.uri"] == "http://there"
    assert "--tracking.uri http://there" in note(run)
