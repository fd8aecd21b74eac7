"""launch/ray_train.py when workers die and nodes come and go: a real Ray, on this machine. Minutes each."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.process import gpus
from pipeline.tracking.journal import complete_lines
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import TINY, environment, final_checkpoint, script
from tests.patience import limit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
PORT = 6391
PRIORITY = {"RAY_worker_niceness": "0"}  # Ray gives way to everything else on the machine by default


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a Ray of this test alone: a token of its own."""
    (tmp_path / ".ray").mkdir(mode=0o700)
    token = tmp_path / ".ray" / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return environment({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", **PRIORITY})


def train(
    folder: Path, digits: Path, home: dict[str, str], *options: str, ledger: Path | None = None
) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(TINY.format(data=digits))
    with_ledger = [sys.executable, str(ROOT / "tests" / "cluster" / "ray_with_ledger.py"), str(ledger)]
    launcher = with_ledger if ledger else script("ray_train.py")
    return subprocess.Popen(
        [*launcher, "--config", str(folder / "tiny.yaml"), "--evaluation.every", "100000", *options],
        cwd=folder,
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def alone(folder: Path, *options: str) -> Path:
    """The same training in one process that nothing interrupts."""
    command = [sys.executable, "-m", "pipeline.train", "--config", str(folder / "tiny.yaml"), "--name", "alone"]
    options = ("--evaluation.every", "100000", *options)
    command = [*command, *options]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, timeout=limit(300))
    return folder / "runs" / "alone"


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in complete_lines((run / "metrics.jsonl").read_bytes())]
    found = [(line["iteration"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert len(found) == len(dict(found)), "an iteration was logged twice"
    return dict(found)


def world_sizes(run: Path) -> list[int]:
    path = run / "run.json"
    return [one["world_size"] for one in json.loads(path.read_text())["attempts"]] if path.exists() else []


def epochs_taken(ledger: Path, iterations: int, samples: int) -> list[list[int]]:
    """The sample ids of each whole epoch, in order, by the last attempt at each of the first `iterations`."""
    lines = [json.loads(line) for path in ledger.glob("*.jsonl") for line in path.read_text().splitlines()]
    latest: dict[int, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda one: one["time"]):
        if latest.get(line["iteration"], {}).get("world_size") != line["world_size"]:
            latest[line["iteration"]] = {"world_size": line["world_size"]}
        latest[line["iteration"]][line["rank"]] = line["ids"]
    stream: list[int] = []
    for iteration in range(1, iterations + 1):
        taken = latest[iteration]
        stream += [sample for rank in range(taken["world_size"]) for sample in taken[rank]]
    return [stream[start : start + samples] for start in range(0, len(stream) - samples + 1, samples)]


def logged(run: Path) -> int:
    return max(losses(run), default=0) if (run / "metrics.jsonl").exists() else 0


def processes(word: str, home: dict[str, str]) -> list[int]:
    """Processes of this test's Ray (its daemons share the test's HOME) whose command line begins with `word`."""

    def mine(entry: Path) -> bool:
        if word.startswith("ray::"):  # workers overwrite their environment with their title: known by their raylet
            parent = (entry / "status").read_text().partition("PPid:")[2].split()[0]
            return int(parent) in processes("raylet", home)
        return f"HOME={home['HOME']}".encode() in (entry / "environ").read_bytes().split(b"\0")

    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_text().split("\0")[0] if entry.name.isdigit() else ""
            if name and Path(name).name.startswith(word) and mine(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def test_killed_worker(tmp_path: Path, digits: Path, home: dict[str, str], seconds_lost: dict[str, float]) -> None:
    options = ("--iterations", "400", "--checkpoint.every", "20")
    process = train(tmp_path, digits, home, "--name", "run", "--workers", "2", *options)
    run = tmp_path / "runs" / "run"
    wait_for(lambda: logged(run) >= 60, "iteration 60", 200)
    os.kill(processes("ray::RayTrainWorker", home)[-1], signal.SIGKILL)
    seconds_lost["kill -9 of a worker to training again"] = wait_for(
        lambda: len(world_sizes(run)) == 2, "the second attempt", 200
    )
    out, _ = process.communicate(timeout=limit(300))
    assert process.returncode == 0, out
    assert final_checkpoint(run) == final_checkpoint(alone(tmp_path, *options))


def test_gpus_that_torch_cannot_use(tmp_path: Path, digits: Path, home: dict[str, str]) -> None:
    """A cluster with two GPUs, as Ray believes: no training on the CPU, one sentence, and no second try."""
    if gpus.inspect().gpus:
        pytest.skip("this machine has GPUs, which Ray would give to the workers")
    home = {name: value for name, value in home.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray counts its entries
    sessions = tempfile.mkdtemp(prefix="ray")  # short: its sockets' paths must stay under 108 bytes
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=2", "--num-gpus=2"]
    ray += ["--node-ip-address=127.0.0.1", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={sessions}"]
    try:
        subprocess.run(ray, env=home, check=True, capture_output=True, timeout=limit(120))
        process = train(tmp_path, digits, home, "--name", "run", "--address", f"127.0.0.1:{PORT}")
        out, _ = process.communicate(timeout=limit(300))
    finally:
        end_ray(home, sessions)
    assert process.returncode == 2, out
    assert out.splitlines()[-1].startswith("error: torch can use no GPU here: "), out
    assert "Traceback" not in out and not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()


def end_ray(home: dict[str, str], sessions: str) -> None:
    for word in ("ray::", "raylet", "gcs_server", "python"):  # python: the monitors of its logs
        for pid in processes(word, home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(sessions, ignore_errors=True)


@pytest.fixture
def nodes(home: dict[str, str]) -> Iterator[list[str]]:
    """A Ray of four nodes of one core each; the command that adds a node."""
    sessions = tempfile.mkdtemp(prefix="ray")  # short: its sockets' paths must stay under 108 bytes
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    head = [*ray, "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={sessions}"]
    add = [*ray, f"--address=127.0.0.1:{PORT}"]
    try:
        for command in (head, add, add, add):
            subprocess.run(command, env=home, check=True, capture_output=True, timeout=limit(120))
        yield add
    finally:
        end_ray(home, sessions)


def test_elastic(
    tmp_path: Path, digits: Path, home: dict[str, str], nodes: list[str], seconds_lost: dict[str, float]
) -> None:
    """4 workers, a node dies (3), another comes (4): the same losses, every iteration exactly once."""
    # 24 rows are divided by 2, 3 and 4; a small learning rate, so that rounding does not grow into another trajectory.
    options = ("--batch", "24", "--bn_group", "2", "--optimizer.lr", "0.001", "--checkpoint.every", "20")
    # More than there is time for: the ledger lets an update take 0.05 s at least. It is stopped when all has happened.
    options = (*options, "--iterations", "20000")
    elastic = ("--name", "run", "--address", f"127.0.0.1:{PORT}", "--workers", "2:4")
    (ledger := tmp_path / "ledger").mkdir()
    process = train(tmp_path, digits, home, *elastic, *options, ledger=ledger)
    run = tmp_path / "runs" / "run"
    wait_for(lambda: logged(run) >= 40, "iteration 40", 200)
    assert world_sizes(run) == [4]
    raylets = [psutil.Process(pid) for pid in processes("raylet", home)]
    max(raylets, key=psutil.Process.create_time).kill()  # not the head's, where the driver is; process ids wrap around
    seconds_lost["a node lost to training on the others"] = wait_for(
        lambda: world_sizes(run) == [4, 3], "3 workers", 240
    )
    at = logged(run)
    subprocess.run(nodes, env=home, check=True, capture_output=True, timeout=limit(120))
    seconds_lost["a node added to training on it"] = wait_for(lambda: world_sizes(run) == [4, 3, 4], "4 workers", 240)
    resized = logged(run)
    assert resized > at
    wait_for(lambda: logged(run) >= resized + 40, "progress", 200)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=limit(120))
    here = losses(run)
    reference = losses(alone(tmp_path, *options[:-1], str(max(here))))
    assert sorted(here) == list(range(4, max(here) + 1, 4))  # tracking.log_every
    shared = sorted(here)
    # Sums in another order differ in the last bits, which are all that is left of a loss near 0.
    np.testing.assert_allclose([here[i] for i in shared], [reference[i] for i in shared], rtol=1e-3, atol=1e-3)
    samples = json.loads((digits / "manifest.json").read_text())["splits"]["train"]["samples"]
    epochs = epochs_taken(ledger, max(here), samples)
    assert epochs and all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    # Ray knows of the run folder's checkpoints, which are not copied.
    pointers = [json.loads(path.read_text()) for path in run.glob("ray/*/checkpoint_*/checkpoint.json")]
    # Ray keeps two, and deletes the third when it learns of it; a group that dies first leaves its last ones behind.
    assert 0 < len(pointers) <= 3 * 4 and all(
        one["checkpoint"].startswith(str(run / "checkpoints")) for one in pointers
    )
