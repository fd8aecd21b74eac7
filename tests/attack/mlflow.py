"""An MLflow that misbehaves beside runs, and files of the tracking that are damaged."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from random import Random
from urllib.parse import quote

from pipeline.base.command import UserError
from pipeline.base.layout import DELIVERED, METRICS, TRACKING
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.tracking import TrackingConfig, open_tracker, read_metrics
from pipeline.tracking.process import FeederProcess, left_at
from pipeline.tracking.state import Delivered, Wanted
from tests.attack.attack import Attack, Outcome
from tests.patience import limit
from tests.pipeline.tracking.hostile_proxy import Fate, hostile_proxy

WEIGHTS: dict[Fate, float] = {
    "ok": 12,
    "429": 1,
    "500": 1,
    "503": 1,
    "401": 0.5,
    "html": 0.5,
    "redirect": 0.5,
    "reset": 1,
    "lost": 1,
    "slow": 0.3,
    "dead": 0.5,
}
SYNC_SECONDS, SYNCS = 120.0, 5
SIGNS = "abcdefgXYZ0189-._~!$*"


class Schedule:
    """What becomes of each request: drawn, now and then dead for a while; after `mend` all is well."""

    def __init__(self, random: Random) -> None:
        self.random = Random(random.random())
        self.healthy = random.choice([0.2, 1.0, 5.0])  # the server's good moments: from hardly any to most
        self.left, self.present, self.well = 0, "ok", False
        self.lock = threading.Lock()

    def mend(self) -> None:
        self.well = True

    def __call__(self) -> Fate:
        with self.lock:
            if self.well:
                return "ok"
            if self.left == 0:
                weights = WEIGHTS | {"ok": WEIGHTS["ok"] * self.healthy}
                self.present = self.random.choices(list(weights), list(weights.values()))[0]
                self.left = self.random.choice([1, 1, 1, 2, 6])
            self.left -= 1
            return self.present  # type: ignore[return-value]


def misbehaving(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """Small runs that feed an MLflow of a drawn health, with secrets in every place that takes one; then `sync`."""
    from tests.pipeline.tracking.mlflow_app import mlflow_app

    (folder / "store").mkdir()
    store = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
    with mlflow_app(store, folder / "store") as port:
        for number in range(tries):
            schedule, canary = Schedule(random), _canary(random)
            with hostile_proxy(port, schedule) as proxy, _environment(_secrets(random, canary, proxy)):
                before = len(outcome.failures)
                try:
                    for sentence in _one_run(random, folder / f"runs-{number}" / "a", schedule, store, canary):
                        outcome.wrong(f"try {number}: {sentence}")
                except Exception:
                    outcome.wrong(f"try {number}: {traceback.format_exc()}")
            found = [path for path in folder.rglob("*") if path.is_file() and _holds(path.read_bytes(), canary)]
            if found:
                outcome.wrong(f"try {number}: the secret {canary} stands in {', '.join(map(str, found))}")
            if len(outcome.failures) == before:
                outcome.right("delivered once, no secret")


def _one_run(random: Random, folder: Path, schedule: Schedule, store: str, canary: str) -> Iterator[str]:
    """Sentences on what went wrong."""
    said = io.StringIO()
    params = {"data": f"https://host/x?token={quote(canary)}", "note": f"s3://me:{quote(canary, safe='')}@bucket"}
    with redirect_stderr(said):
        started = time.monotonic()
        config = TrackingConfig(close_seconds=random.choice([1.0, 6.0]))
        with open_tracker(folder, config, name="a", params=params, tags={"x": f"http://me:{quote(canary)}@h"}) as run:
            for iteration in range(random.randint(50, 400)):
                run.log("train", iteration, {"loss": iteration / 7, "lr": 0.1})
                if iteration % 50 == 0:
                    run.log("val", iteration, {"top1_error": 100 / (iteration + 1)})
                time.sleep(random.random() * 0.02)
            yield from _seen_by_others(canary)
            (folder / "config.yaml").write_text("a: 1\n")
            run.artifact(folder / "config.yaml")
            run.finish("FINISHED")
            closing = time.monotonic()
        if time.monotonic() - closing > config.close_seconds + limit(30):
            yield f"the end took {time.monotonic() - closing:.0f} s"
        schedule.mend()
        place = Delivered.read(folder).uri
        for _ in range(SYNCS):
            feeder = FeederProcess(folder, SYNC_SECONDS)
            feeder.drain(SYNC_SECONDS)
            place = Delivered.read(folder).uri
            if not (left := left_at(folder, place)):
                break
        else:
            yield f"after {SYNCS} syncs MLflow lacks {left}, {Delivered.read(folder).error} ({started:.0f})"
    if _holds(said.getvalue().encode(), canary):
        yield f"the secret {canary} was printed: {said.getvalue()}"
    yield from _differences(folder, store)


def _differences(folder: Path, store: str) -> Iterator[str]:
    """What MLflow has otherwise than metrics.jsonl."""
    from mlflow import MlflowClient

    client, wanted = MlflowClient(store), Wanted.read(folder)
    assert wanted is not None
    experiment = client.get_experiment_by_name(wanted.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.run_key = '{wanted.key}'") if experiment else []
    if len(runs) != 1:
        yield f"{len(runs)} MLflow runs"
        return
    (run,) = runs
    if run.info.status != "FINISHED":
        yield f"the status is {run.info.status}"
    for name in ("train/loss", "train/lr", "val/top1_error"):
        kind, metric = name.split("/")
        lines = [record for record in read_metrics(folder / METRICS) if record.kind == kind]
        points = client.get_metric_history(run.info.run_id, name)
        stored = sorted((point.step, point.timestamp) for point in points)
        if stored != sorted((line.iteration, line.time) for line in lines):
            twice = len(stored) - len(set(stored))
            yield f"of {len(lines)} points of {name} MLflow has {len(stored)}, {twice} of them twice"
        values = {point.step: point.value for point in points}
        if any(abs(values.get(line.iteration, 1e9) - line.values[metric]) > 1e-3 for line in lines):
            yield f"other values of {name}"


def _canary(random: Random) -> str:
    return "Canary" + "".join(random.choices(SIGNS, k=10)) + random.choice(["", "/x", "@y", ":z"]) + "Yranac"


def _secrets(random: Random, canary: str, port: int) -> dict[str, str]:
    """Environment variables that give MLflow's address, with the canary in each place that a user may put a secret."""
    address, user = f"127.0.0.1:{port}", "bob"
    given = {
        "MLFLOW_TRACKING_URI": f"http://{address}",
        "HTTPS_PROXY": f"http://me:{quote(canary, safe='')}@127.0.0.1:1",
        "AWS_SECRET_ACCESS_KEY": canary,
        COMMAND_VARIABLE: f"python -m pipeline.train --password {quote(canary)} X_TOKEN={quote(canary)}",
    }
    match random.choice(["address", "variables", "token"]):
        case "address":
            given["MLFLOW_TRACKING_URI"] = f"http://{user}:{quote(canary, safe='')}@{address}"
        case "variables":
            given |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": canary}
        case "token":
            given["MLFLOW_TRACKING_TOKEN"] = canary
    return given


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _holds(content: bytes, canary: str) -> bool:
    """Whether `content` holds the canary, in any spelling."""
    logins = (base64.b64encode(f"bob:{part}".encode()).decode() for part in (canary, quote(canary, safe="")))
    spelt = {canary, quote(canary), quote(canary, safe=""), json.dumps(canary)[1:-1], *logins}
    return any(one.encode() in content for one in spelt)


def _seen_by_others(canary: str) -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if _holds(path.read_bytes(), canary):
                yield f"the secret {canary} stands in {path}"
        except OSError:  # the process has ended
            continue


def damaged_files(random: Random, tries: int, folder: Path, outcome: Outcome) -> None:
    """tracking.json, mlflow.json or metrics.jsonl damaged: a run goes on, or is refused with a sentence; all is read."""
    whole = folder / "whole" / "a"
    config = TrackingConfig(mlflow=False)
    with open_tracker(whole, config, name="a", params={"lr": 0.1}, tags={"kind": "training"}) as run:
        for iteration in range(30):
            run.log("train", iteration, {"loss": iteration / 7})
    Delivered(uri="sqlite:///x", experiment_id="1", run_id="ab" * 16, position=99, system={"h": 3}).write(whole)
    for number in range(tries):
        name = random.choice([TRACKING, DELIVERED, METRICS])
        with tempfile.TemporaryDirectory(dir=folder) as place:
            copy = Path(shutil.copytree(whole, Path(place) / "a"))
            what = _damage(random, copy / name)
            said = io.StringIO()
            try:
                with redirect_stderr(said):
                    Wanted.read(copy), Delivered.read(copy), left_at(copy, "sqlite:///x")
                    with open_tracker(copy, config, name="a", params={"lr": 0.1}, tags={}) as run:
                        run.log("train", 30, {"loss": 1.0})
                    kept = read_metrics(copy / METRICS)
                assert kept[-1].iteration == 30, "the new line is lost"
            except UserError as error:
                outcome.right("refused") if name == METRICS else outcome.wrong(f"try {number}: {what}: {error}")
            except BaseException:
                outcome.wrong(f"try {number}: {what}: {traceback.format_exc()}")
            else:
                outcome.right("warned of" if "warning" in said.getvalue() else "went on")


def _damage(random: Random, path: Path) -> str:
    """Damage the file; what was done, in words."""
    content = bytearray(path.read_bytes())
    at = random.randrange(len(content))
    kind = random.choice(["flip", "cut", "nul", "insert", "delete", "value", "folder", "deep", "loop", "fifo", "empty"])
    match kind:
        case "flip":
            content[at] ^= 1 << random.randrange(8)
        case "cut":
            del content[at:]
        case "nul":
            content[at : at + random.randrange(1, 200)] = bytes(random.randrange(1, 200))
        case "insert":
            content[at:at] = random.randbytes(random.randrange(1, 20))
        case "delete":
            del content[at : at + random.randrange(1, 200)]
        case "value":
            return f"{path.name}: {_change_a_value(random, path)}"
        case "deep":
            content = bytearray(b'{"a":' * 100_000) if random.random() < 0.5 else bytearray(b"[" * 100_000 + b"\n")
        case "empty":
            content.clear()
        case _:
            path.unlink()
            {"folder": path.mkdir, "loop": lambda: path.symlink_to(path), "fifo": lambda: os.mkfifo(path)}[kind]()
            return f"{path.name}: {kind}"
    path.write_bytes(content)
    return f"{path.name}: {kind} at {at}"


STRANGE: tuple[object, ...] = (
    None,
    -1,
    10**30,
    1e999,
    "",
    "x'; --",
    "\0",
    [],
    {},
    [[]],
    [[1, 2]],
    {"a": 1},
    True,
    "é" * 999,
)


def _change_a_value(random: Random, path: Path) -> str:
    """Give one key another value, or take it away."""
    lines = path.read_text().splitlines() if path.name == METRICS else [path.read_text()]
    at = random.randrange(len(lines))
    values = json.loads(lines[at])
    key, value = random.choice(list(values)), random.choice(STRANGE)
    if random.random() < 0.2:
        del values[key]
    else:
        values[key] = value
    lines[at] = json.dumps(values)
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"{key} = {value!r}"


MISBEHAVING = Attack(
    name="mlflow",
    what="small runs beside an MLflow that answers 429, 500, HTML, late or never, with secrets in the environment",
    run=misbehaving,
    short=2,
    full=40,
)
DAMAGED_FILES = Attack(
    name="tracking-files",
    what="tracking.json, mlflow.json or metrics.jsonl damaged",
    run=damaged_files,
    short=50,
    full=1000,
)
