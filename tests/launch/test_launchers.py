"""Every launcher starts the same training: real runs, compared to the bit with one process started without a launcher."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import local, ray_train, slurm
from launch.ranks import worker
from launch.ranks.failure import Failure
from launch.ranks.supervisor import REPORT_VARIABLE
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_HUNG, EXIT_USER_ERROR
from pipeline.process.notes import Note
from pipeline.run.options import load
from tests.fleet import Fleet
from tests.helpers import alive, stopped_or_dead, wait_for, without_gloo
from tests.launch.launchers import environment, final_checkpoint, finish, launcher_of, script
from tests.patience import limit


@pytest.mark.costly("each of two ranks imports everything, as a user's do")
def test_local_two_processes(tmp_path: Path, tiny: Path, reference: str) -> None:
    command = [*script("local.py"), "--config", str(tiny), "--name", "run", "--procs", "2", "--json"]
    done = finish(command, tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    assert final_checkpoint(run) == reference
    assert launcher_of(run) == ("local", 2)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["iteration"] == 12 and 0 <= figures["val/top1_error"] <= 100
    assert "finished" in done.stdout
    assert (run / "logs" / "rank-1.log").exists()


@pytest.mark.slow  # the cluster tests use submitit too
def test_submitit_on_this_machine(tmp_path: Path, tiny: Path, reference: str) -> None:
    command = [*script("slurm.py"), "--cluster", "local", "--tasks-per-node", "2", "--config", str(tiny)]
    done = finish([*command, "--name", "run", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    assert final_checkpoint(run) == reference
    assert launcher_of(run) == ("submitit-local", 2)
    assert json.loads(done.stdout.splitlines()[-1])["iteration"] == 12
    # A pickle is code: for its owner alone.
    assert stat.S_IMODE((run / "slurm").stat().st_mode) == 0o700


@pytest.mark.costly("a process that imports everything, as a user's does")
def test_submitit_in_this_process(tmp_path: Path, tiny: Path, reference: str) -> None:
    command = [*script("slurm.py"), "--cluster", "debug", "--config", str(tiny), "--name", "run"]
    done = finish(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert final_checkpoint(tmp_path / "runs" / "run") == reference
    assert launcher_of(tmp_path / "runs" / "run") == ("submitit-debug", 1)


@pytest.mark.slow
def test_torchrun(tmp_path: Path, tiny: Path, reference: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    rendezvous = ["--rdzv-endpoint", "localhost:0", "-m", "pipeline.train", "--config", str(tiny), "--name", "run"]
    done = finish([*torchrun, *rendezvous], tmp_path)
    assert done.returncode == 0, done.stderr
    assert final_checkpoint(tmp_path / "runs" / "run") == reference
    assert launcher_of(tmp_path / "runs" / "run")[1] == 2


@pytest.mark.cluster
def test_ray_two_workers(tmp_path: Path, tiny: Path, reference: str) -> None:
    home = {"HOME": str(tmp_path), "RAY_worker_niceness": "0"}  # for a token file of its own
    command = [*script("ray_train.py"), "--config", str(tiny), "--name", "run", "--workers", "2", "--json"]
    done = finish(command, tmp_path, extra=home)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    assert final_checkpoint(run) == reference
    assert launcher_of(run) == ("ray", 2)
    assert json.loads(done.stdout.splitlines()[-1])["iteration"] == 12
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    for line in done.stderr.splitlines():  # progress, the closing table, and nothing of Ray's own
        assert "ray." not in line.lower() and "warn" not in line.lower(), done.stderr
    # A mistake of the user is his one sentence here too, and no reason to try again.
    wrong = finish([*command[:-1], "--seed", "1"], tmp_path, extra=home)
    assert wrong.returncode == 2
    assert [line for line in wrong.stderr.splitlines() if line.startswith("error: ")] == wrong.stderr.splitlines()[-1:]
    assert "seed: 0 -> 1" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("options", "here", "workers", "devices", "told"),
    [
        (["--address", "auto"], 0, (4, 4), 4, None),
        (["--address", "auto", "--workers", "1:2"], 0, (1, 2), 4, None),
        ([], 0, (1, 1), 0, 0),
        ([], 2, (2, 2), 2, 2),
    ],
    ids=["cluster", "elastic", "no GPU here", "GPUs here"],
)
def test_ray_uses_the_gpus_of_the_cluster_or_those_that_torch_sees_here(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    here: int,
    workers: tuple[int, int],
    devices: int,
    told: int | None,
) -> None:
    """A head pod of a cluster has none. With a stand-in for Ray, which counts 4 GPUs, and for the training."""
    started: list[dict[str, Any]] = []
    ray = SimpleNamespace(
        init=lambda **how: started.append(how),
        shutdown=lambda: None,
        cluster_resources=lambda: {"CPU": 8.0, "GPU": 4.0},
        exceptions=SimpleNamespace(RayError=ConnectionError),
    )
    given: list[Any] = []
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_AUTH_MODE": "none"})
    monkeypatch.setattr(ray_train, "gpus", lambda: here)
    monkeypatch.setattr(ray_train, "fit", lambda work, *arguments: given.extend(arguments) or 0)
    assert ray_train.main(["--config", str(tiny), *options]) == 0
    assert given[:2] == [workers, devices]
    assert [how.get("num_gpus") for how in started] == [told]


@pytest.mark.slow
def test_stop_request_saves_and_the_same_command_goes_on(tmp_path: Path, tiny: Path) -> None:
    command = [*script("local.py"), "--config", str(tiny), "--procs", "2", "--iterations", "500"]
    command += ["--checkpoint.every", "100000", "--evaluation.every", "100000", "--tracking.log_every", "10"]
    started = {
        "cwd": tmp_path,
        "env": environment(),
        "stderr": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    process = subprocess.Popen([*command, "--name", "run"], **started)
    run = tmp_path / "runs" / "run"
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, "the first metrics", 120)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=limit(120))
    assert process.returncode == 75, err
    assert "stopped on request" in out
    stopped = int(final_checkpoint(run)[:8])
    assert 10 <= stopped < 500
    assert finish([*command, "--name", "run"], tmp_path).returncode == 0
    assert finish([*command, "--name", "whole"], tmp_path).returncode == 0
    assert final_checkpoint(run) == final_checkpoint(tmp_path / "runs" / "whole")


@pytest.mark.slow  # test_supervisor.py says it of small ranks
def test_interrupt_and_killed_launcher_leave_nothing_running(tmp_path: Path, tiny: Path) -> None:
    command = [*script("local.py"), "--config", str(tiny), "--procs", "2", "--iterations", "100000", "--name"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        run = tmp_path / "runs" / number.name
        metrics = run / "metrics.jsonl"
        process = subprocess.Popen(
            [*command, run.name],
            cwd=tmp_path,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            stdout=subprocess.DEVNULL,
        )
        wait_for(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size, "the first metrics", 120)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(ranks) == 2 and all(map(alive, ranks))
        process.send_signal(number)
        _, err = process.communicate(timeout=limit(60))
        assert process.returncode == code, err
        wait_for(lambda ranks=ranks: not any(map(alive, ranks)), "the end of the ranks")
        if number == signal.SIGINT:
            assert err.splitlines()[-1].startswith("saved at iteration ")
            assert list((run / "checkpoints").glob("*.pt"))
            assert "Traceback" not in err


@pytest.mark.slow  # test_supervisor.py says it of small ranks, test_watchdog.py of forked ones
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_stops_or_dies_is_named_with_its_last_word(
    tmp_path: Path, tiny: Path, number: signal.Signals
) -> None:
    command = [*script("local.py"), "--config", str(tiny), "--procs", "2", "--iterations", "100000", "--name", "run"]
    process = subprocess.Popen(
        [*command, "--timeout-seconds", str(limit(120 if number == signal.SIGKILL else 30))],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    run = tmp_path / "runs" / "run"
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, "the first metrics", 120)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[1], number)
    wait_for(lambda: stopped_or_dead(ranks[1]) and Note.read(run / "activity" / "rank-1.json"), "its last word")
    note = str(Note.read(run / "activity" / "rank-1.json"))
    _, err = process.communicate(timeout=limit(200))
    error = err.splitlines()[-1]
    assert "error: rank 1 failed first" in error and note in error, err
    if number == signal.SIGKILL:
        assert process.returncode == 137 and "was killed by SIGKILL" in error
    else:
        assert process.returncode == EXIT_HUNG and "did not arrive within" in error
        # Awake again for its end, it says where it stood.
        assert "most recent call first" in (run / "logs" / "rank-1.log").read_text()
    wait_for(lambda: not any(map(alive, ranks)), "the end of the ranks")


def become_a_worker(rank: int, argv: list[str], told: Path) -> None:
    """A rank of launch/local.py, whose supervisor's file is `told`/RANK."""
    descriptor = os.open(told / str(rank), os.O_WRONLY | os.O_CREAT)
    os.environ[REPORT_VARIABLE] = str(descriptor)
    os._exit(worker.main(argv))


def test_ranks_tell_their_launcher_of_a_mistake(tmp_path: Path, tiny: Path) -> None:
    """Where their last words stand, and one sentence; test_supervisor.py: the launcher says it once."""
    (told := tmp_path / "told").mkdir()
    run = tmp_path / "runs" / "run"
    argv = ["--config", str(tiny), "--runs", str(run.parent), "--name", run.name, "--data", "nowhere"]
    ranks = Fleet(load(tiny), 2, tmp_path / "logs", partial(become_a_worker, argv=argv, told=told))
    assert ranks.wait(60) == [EXIT_USER_ERROR] * 2
    for rank in range(2):
        activity, failure = (told / str(rank)).read_text().splitlines()
        assert activity == str(run / "activity" / f"rank-{rank}.json")
        found = Failure.from_json(failure)
        assert (found.rank, found.code, found.detail) == (rank, EXIT_USER_ERROR, "")
        assert found.sentence.startswith("nowhere is not a dataset folder")
        assert ranks.said(rank) == ""


@pytest.mark.slow  # without a launcher: above
@pytest.mark.parametrize(
    "command",
    [
        ["local.py", "--procs", "2"],
        ["slurm.py", "--cluster", "local", "--tasks-per-node", "2"],
        ["slurm.py", "--cluster", "debug"],
    ],
    ids=["local", "submitit", "debug"],
)
def test_a_mistake_found_by_the_ranks_is_one_sentence(tmp_path: Path, tiny: Path, command: list[str]) -> None:
    name, *options = command
    done = finish([*script(name), "--config", str(tiny), *options, "--data", "nowhere"], tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "nowhere" in errors[0] and done.stderr.endswith(errors[0] + "\n")
    assert "Traceback" not in done.stderr and without_gloo(done.stdout) == ""


MISTAKES = {
    "procs": (local.main, ["--procs", "none"], "--procs is 'none'"),
    "no procs": (local.main, ["--procs"], "--procs needs a number"),
    "tasks": (slurm.main, ["--cluster", "local", "--tasks-per-node", "3"], "batch 16 is not divided by 3 processes"),
    "cluster": (slurm.main, ["--cluster", "pbs"], "pbs"),
    "local nodes": (slurm.main, ["--cluster", "local", "--nodes", "2"], "this machine alone"),
    "debug ranks": (slurm.main, ["--cluster", "debug", "--tasks-per-node", "2"], "use --cluster local"),
    "job name": (slurm.main, ["--cluster", "local", "--name", "a;b"], "run name 'a;b'"),
    "option": (slurm.main, ["--nods", "2"], "did you mean '--nodes'"),
    "workers": (ray_train.main, ["--workers", "4:2"], "--workers is '4:2'"),
    "elastic workers": (ray_train.main, ["--workers", "2:3"], "batch 16 is not divided by 3 processes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_found_before_anything_starts(
    tmp_path: Path, tiny: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, options, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        run(["--config", str(tiny), *options])
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["local.py", "slurm.py", "ray_train.py"])
def test_help_opens_with_a_sentence_and_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = {"local.py": local, "slurm.py": slurm, "ray_train.py": ray_train}[name]
    with pytest.raises(SystemExit) as ended:
        launcher.main(["--help"])
    assert ended.value.code == 0
    usage, _, sentence, _, title, example, *_ = capsys.readouterr().out.splitlines()
    assert usage == f"usage: python launch/{name} [options]"
    assert sentence.endswith(".") and title == "example:" and example.startswith(f"  python launch/{name} ")
