"""Measures what tracking costs a training step: none, ours (a process beside the run), MLflow in a thread, MLflow inline; and
ours beside an MLflow that is unwell: it answers 429 to everything, after 5 s, or not at all."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.base.command import run  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.models.resnet import build  # noqa: E402
from pipeline.tracking import TrackingConfig, open_tracker  # noqa: E402

Log = Callable[[int, dict[str, float]], None]


@contextmanager
def nothing(folder: Path) -> Iterator[Log]:
    yield lambda iteration, values: None


@contextmanager
def ours(folder: Path) -> Iterator[Log]:
    with open_tracker(folder / "run", TrackingConfig(), name="run", params={}, tags={}) as tracker:
        yield lambda iteration, values: tracker.log("train", iteration, values)


@contextmanager
def unwell(folder: Path, kind: str) -> Iterator[Log]:
    """Ours beside a server, in a process of its own, that is `kind`."""
    with subprocess.Popen([sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        config = TrackingConfig(uri=f"http://127.0.0.1:{int(server.stdout.readline())}", close_seconds=1.0)
        with open_tracker(folder / "run", config, name="run", params={}, tags={}) as tracker:
            yield lambda iteration, values: tracker.log("train", iteration, values)
        server.kill()


def serve(kind: str) -> None:
    """Be that server: on a port of 127.0.0.1 that is printed, until this process is killed."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            time.sleep({"busy": 0, "slow": SLOW_SECONDS, "silent": 1e9}[kind])
            self.send_response(429 if kind == "busy" else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextmanager
def thread(folder: Path) -> Iterator[Log]:
    """MLflow, imported and fed by a thread of the training process."""
    waiting: list[tuple[int, dict[str, float]]] = []
    closed = threading.Event()

    def feed() -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow_run = client.create_run(client.create_experiment("bench")).info.run_id
        while not closed.wait(0.5) or waiting:
            lines, waiting[:] = list(waiting), []
            points = [Metric(name, value, 0, step) for step, values in lines for name, value in values.items()]
            client.log_batch(mlflow_run, metrics=points[:1000])

    feeder = threading.Thread(target=feed)
    feeder.start()
    yield lambda iteration, values: waiting.append((iteration, values))
    closed.set()
    feeder.join()


@contextmanager
def inline(folder: Path) -> Iterator[Log]:
    """MLflow, called by the training loop itself as in its tutorials; its import is not counted."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    with mlflow.start_run():
        yield lambda iteration, values: mlflow.log_metrics(values, step=iteration)


SLOW_SECONDS = 5.0
UNWELL = ("busy", "slow", "silent")
WAYS: dict[str, Callable[[Path], AbstractContextManager[Log]]] = {
    "nothing": nothing,
    "ours": ours,
    **{f"ours, {kind}": partial(unwell, kind=kind) for kind in UNWELL},
    "thread": thread,
    "inline": inline,
}


def measure(way: str, seconds: float, every: int) -> dict[str, float]:
    """Time the steps of ResNet-20 (batch 8, one CPU thread) for `seconds`, from the first step on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build("resnet20", classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    for _ in range(20):
        step()
    times: list[float] = []
    logs: list[float] = []
    values = {"error": 1.0, "lr": 0.1, "images_per_second": 1.0, "data_wait_share": 0.0}
    with tempfile.TemporaryDirectory() as folder, WAYS[way](Path(folder)) as log:
        deadline = time.perf_counter() + seconds
        while (started := time.perf_counter()) < deadline:
            loss = step()
            if len(times) % every == 0:
                logging = time.perf_counter()
                log(len(times), {"loss": loss, **values})
                logs.append(time.perf_counter() - logging)
            times.append(time.perf_counter() - started)
    log_us = 1e6 * float(np.median(logs))
    return {"mean_ms": 1e3 * float(np.mean(times)), "longest_ms": 1e3 * max(times), "log_us": log_us}


def main() -> None:
    parser = argparse.ArgumentParser(description=f"{__doc__} Example: python bench/tracking.py --rounds 3")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per run, with its start (%(default)g)")
    parser.add_argument("--every", type=int, default=10, help="steps between two log lines (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=UNWELL, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to compare (all)")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.way:
        print_json(measure(options.way, options.seconds, options.every))
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    with Progress(options.rounds * len(options.ways), "tracking", "run") as progress:
        for _ in range(options.rounds):
            for way in options.ways:  # each in a process of its own, because a process pays for an import only once
                command = [sys.executable, __file__, "--way", way]
                command += ["--seconds", str(options.seconds), "--every", str(options.every)]
                done = subprocess.run(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    check=True,
                    encoding="utf-8",
                    errors="replace",
                )
                results[way].append(json.loads(done.stdout.splitlines()[-1]))
                progress.advance()
    medians = {
        way: {name: float(np.median([run[name] for run in runs])) for name in runs[0]} for way, runs in results.items()
    }
    rows = [
        (way, f"{median['mean_ms']:.2f}", f"{median['longest_ms']:.1f}", f"{median['log_us']:.0f}")
        for way, median in medians.items()
    ]
    title = f"A training step's time, a log line every {options.every} steps, the first {options.seconds:g} s of a run"
    print_table(title, ("tracking", "mean ms", "longest ms", "log call µs"), rows)
    base = options.ways[0]
    ratios = {f"{way}/{base}": medians[way]["mean_ms"] / medians[base]["mean_ms"] for way in options.ways}
    if options.json:
        print_json({"ratios": ratios, **medians})


if __name__ == "__main__":
    run(main)
