"""No secret that a user gives leaves a training: not into its folder, its output, its command lines or MLflow's errors."""

from __future__ import annotations

import base64
import itertools
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.data.storage import open_dataset
from pipeline.run.config import Config
from pipeline.tracking import TrackingConfig, open_tracker
from pipeline.tracking.__main__ import main
from pipeline.tracking.config import SECRETS_OF_MLFLOW
from tests.helpers import ROOT
from tests.launch.launchers import TINY, environment, finish, script
from tests.pipeline.tracking.hostile_proxy import Fate, hostile_proxy
from tests.pipeline.tracking.mlflow_store import only_run, store_uri

CANARY = "Canary/@1:x"  # a slash and an @ must be encoded in an address
SPELT = (CANARY, quote(CANARY, safe=""), quote(CANARY), base64.b64encode(f"bob:{CANARY}".encode()).decode())


def holding(content: bytes) -> list[str]:
    return [spelt for spelt in SPELT if spelt.encode() in content]


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:  # it has ended
            continue


@pytest.mark.costly("a training, whose feeder imports MLflow")
@pytest.mark.parametrize("way", ["server", "proxy"])
def test_a_training_beside_a_server_that_errs_tells_nobody(digits: Path, tmp_path: Path, way: str) -> None:
    """The server's errors quote the address and the headers of what it was asked, as careless servers do."""
    fates: Iterator[Fate] = itertools.cycle(["500", "401", "redirect", "reset", "html"])
    config = TINY.replace("mlflow: false", "close_seconds: 20")
    (tmp_path / "tiny.yaml").write_text(config.format(data=digits))
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            seen.extend(found for line in command_lines() if (found := holding(line)))

    with hostile_proxy(9, lambda: next(fates)) as port:
        hidden = f"bob:{quote(CANARY, safe='')}@127.0.0.1:{port}"
        secrets = {
            "MLFLOW_TRACKING_URI": f"http://{hidden}"
            if way == "server"
            else f"https://bob:{quote(CANARY, safe='')}@mlflow",
            "HTTPS_PROXY": f"http://{hidden}",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "NO_PROXY": "",
        }
        watching = threading.Thread(target=watch)
        watching.start()
        command = [*script("local.py"), "--config", "tiny.yaml", "--procs", "1", "--name", "run"]
        done = finish(command, tmp_path, extra=secrets)
        over.set()
        watching.join()
    assert done.returncode == 0, done.stderr
    assert "has not taken" in done.stderr and "127.0.0.1" in done.stderr if way == "server" else "mlflow" in done.stderr
    assert holding((done.stdout + done.stderr).encode()) == [] and seen == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path): found for path in files if (found := holding(path.read_bytes()))} == {}
    log = tmp_path / "runs/run/logs/mlflow.log"
    assert "failed" in log.read_text() and stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (f"--tracking.uri=http://bob:{quote(CANARY, safe='')}@host", f"leave it out and {SECRETS_OF_MLFLOW}"),
        (f"--tracking.uri=postgresql://bob:{CANARY}@host/db", f"leave it out and {SECRETS_OF_MLFLOW}"),
        (f"--data=s3://key:{quote(CANARY, safe='')}@bucket/imagenet", "~/.aws or AWS_ACCESS_KEY_ID"),
        (f"--data=https://host/imagenet?X-Amz-Signature={quote(CANARY)}", "~/.config/fsspec or FSSPEC_"),
    ],
)
def test_a_config_with_a_secret_is_refused(digits: Path, tmp_path: Path, option: str, sentence: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.format(data=digits))
    done = finish([*script("local.py"), "--config", "tiny.yaml", option, "--procs", "1", "--name", "run"], tmp_path)
    assert done.returncode == EXIT_USER_ERROR and sentence in done.stderr and "Traceback" not in done.stderr
    assert holding((done.stdout + done.stderr).encode()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_addresses_without_a_secret_are_taken() -> None:
    for address in ("http://host:5000/me@x", "https://me.example.org", "sqlite:////me@work/mlflow.db", None):
        TrackingConfig(uri=address)
    for data in ("abfs://container@account.dfs.core.windows.net/x", "s3://bucket/me@x", "/data/password"):
        Config(data=data)


def test_an_address_of_a_dataset_with_a_secret_is_refused_by_every_command() -> None:
    with pytest.raises(UserError, match="holds a password or a token") as refused:
        open_dataset(f"s3://key:{quote(CANARY, safe='')}@bucket/x")
    assert holding(str(refused.value).encode()) == []


@pytest.mark.costly("two processes import MLflow")
def test_sync_hands_a_password_on_unseen(runs: Path, tmp_path: Path) -> None:
    """The password of --uri is not on the command line of the process that sends; the user is told that it is on ours."""
    folder = runs / "a"
    with open_tracker(folder, TrackingConfig(mlflow=False), name="a", params={}, tags={}) as run:
        run.log("train", 1, {"loss": 1.0})
    fates: Iterator[Fate] = itertools.repeat("401")
    seen: list[bytes] = []
    with hostile_proxy(9, lambda: next(fates)) as port:
        uri = f"http://bob:{quote(CANARY, safe='')}@127.0.0.1:{port}"
        command = [sys.executable, "-m", "pipeline.tracking", "sync", str(folder), "--uri", uri]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            while process.poll() is None:
                seen += [line for line in command_lines() if b"pipeline.tracking.feeder" in line]
            assert process.stdout is not None
            said = process.stdout.read().decode()
    assert process.returncode == EXIT_USER_ERROR
    assert "warning: others on this machine can read the password in --uri" in said and "has not taken" in said
    assert seen and not any(holding(line) for line in seen) and holding(said.encode()) == []
    assert holding((folder / "logs/mlflow.log").read_bytes() + (folder / "mlflow.json").read_bytes()) == []


@pytest.mark.costly("the process that sends imports MLflow")
def test_sync_to_another_store_still_works(runs: Path) -> None:
    with open_tracker(runs / "a", TrackingConfig(mlflow=False), name="a", params={}, tags={}) as run:
        run.log("train", 1, {"loss": 1.0})
    assert main(["sync", str(runs / "a"), "--uri", store_uri(runs)]) == 0
    assert only_run(store_uri(runs)).data.metrics == {"train/loss": 1.0}
