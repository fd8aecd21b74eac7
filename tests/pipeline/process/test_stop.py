"""Stop requests before the first iteration: exit code 75 on every rank, whatever the rank is doing. Real processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.base.exits import EXIT_PREEMPTED
from pipeline.base.stopping import COMMAND_VARIABLE
from pipeline.process import stop as stopping
from pipeline.process.stop import StopRequest
from pipeline.training.checkpoint import Checkpoints
from tests.fleet import Fleet
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import environment
from tests.patience import limit
from tests.pipeline.small_runs import config_of, note_request

FOR_EVER = 1_000_000.0  # seconds: longer than any limit of a test

# Python runs it before a program: the import of torch stops where its machine code is loaded, and the file `at` says so.
SLOW_IMPORT = """
import pathlib, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            pathlib.Path({at!r}).touch()
            time.sleep({seconds})
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGUSR2, EXIT_PREEMPTED, marks=pytest.mark.slow)]
)
def test_during_the_imports(tmp_path: Path, number: signal.Signals, code: int) -> None:
    at, runs = tmp_path / "at", tmp_path / "runs"
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT.format(at=str(at), seconds=FOR_EVER))
    command = [sys.executable, "-m", "pipeline.train", "--data", "nowhere", "--runs", str(runs)]
    surroundings = environment({"PYTHONPATH": str(tmp_path)})
    job = subprocess.Popen(command, cwd=ROOT, env=surroundings, stderr=subprocess.PIPE, text=True)
    wait_for(at.exists, "the import of torch")
    assert "libtorch_cpu" in Path(f"/proc/{job.pid}/maps").read_text()
    job.send_signal(number)
    _, err = job.communicate(timeout=limit(60))
    assert job.returncode == code, err
    assert err.splitlines() == [
        f"starting: resnet50 on nowhere, into {runs}/resnet50-seed0",
        f"stopped: nothing had to be saved yet; to go on: {shlex.join(command)}",
    ]
    assert not runs.exists()


def test_its_thread_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends even if a request came before the ranks had met, for which it still waits."""
    monkeypatch.setattr(stopping, "MEETING_SECONDS", FOR_EVER)
    close = os.close

    def close_slowly(descriptor: int) -> None:
        if threading.current_thread().name == "stop-request":
            time.sleep(0.5)
        close(descriptor)

    monkeypatch.setattr(os, "close", close_slowly)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested.is_set()
    assert "stop-request" not in [thread.name for thread in threading.enumerate()]


BEFORE_THE_MEETING = """
import os, signal, time
from pipeline.base.stopping import end_on_request
from pipeline.process.stop import StopRequest
end_on_request()
{body}
"""


def stopped(body: str) -> tuple[int, str]:
    """Exit code and words of a small program that is asked to stop."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_THE_MEETING.format(body=body)],
        cwd=ROOT, env=environment({COMMAND_VARIABLE: "train"}), capture_output=True, text=True, timeout=limit(60),
    )  # fmt: skip
    return done.returncode, done.stderr


def test_ctrl_c_ends_a_wait_that_another_request_began() -> None:
    body = (
        "with StopRequest(): os.kill(os.getpid(), 15); time.sleep(0.3); os.kill(os.getpid(), 2); time.sleep(1_000_000)"
    )
    code, said = stopped(f"import pipeline.process.stop as its; its.MEETING_SECONDS = {FOR_EVER}\n{body}")
    assert (code, said) == (130, "stopped: nothing had to be saved yet; to go on: train\n")


def test_ctrl_c_after_everything_is_saved_says_so() -> None:
    body = "with StopRequest() as stop: stop.all_is_saved('saved all')\nos.kill(os.getpid(), 2); time.sleep(1_000_000)"
    assert stopped(body) == (130, "saved all\n")


def meet_nobody(rank: int, waiting: Path) -> None:
    """Rank 1 ends at once; rank 0 makes the file `waiting` when it begins to wait for the others, and waits 1 s for them."""
    from pipeline.process import stop as stopping
    from pipeline.process import world

    if rank == 1:
        os._exit(0)
    stopping.MEETING_SECONDS = 1.0
    meet = world.MeetingPlace

    def announced(*arguments: object, **options: object) -> object:
        waiting.touch()
        return meet(*arguments, **options)

    world.MeetingPlace = announced


def test_while_waiting_for_ranks_that_do_not_come(digits: Path, tmp_path: Path) -> None:
    """Native code waits for the other rank, and would wait for its whole time-out if the request did not end the process."""
    waiting = tmp_path / "waiting"
    config = replace(config_of(digits, tmp_path, "run"), timeout_seconds=FOR_EVER)
    job = Fleet(config, 2, tmp_path / "logs", partial(meet_nobody, waiting=waiting))
    wait_for(waiting.exists, "the meeting")
    os.kill(job.ranks[0].pid or 0, signal.SIGTERM)
    assert job.wait(60) == [EXIT_PREEMPTED, 0], job.said(0)


def meet_one_that_has_ended(rank: int) -> None:
    """Rank 1 was asked to stop and has ended; rank 0 is asked, too, and fails to connect to it."""
    from pipeline.process import world

    if rank == 1:
        os._exit(EXIT_PREEMPTED)

    def cut_off(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")

    world.MeetingPlace = cut_off


def test_while_other_ranks_end_on_request(digits: Path, tmp_path: Path) -> None:
    """This is no failure: the job should continue later."""
    job = Fleet(config_of(digits, tmp_path, "run"), 2, tmp_path / "logs", meet_one_that_has_ended)
    assert job.wait(60) == [EXIT_PREEMPTED] * 2, job.said(0)


def open_slowly(rank: int, folder: Path) -> None:
    from pipeline import train

    note_request(rank, folder)
    opening = train.open_dataset

    def slow(place: str) -> object:
        (folder / f"opening-{rank}").touch()
        wait_for((folder / "go").exists, "leave to go on")
        return opening(place)

    train.open_dataset = slow


def test_while_the_dataset_is_opened(digits: Path, tmp_path: Path) -> None:
    """One of two ranks is asked to stop. Both have met, so both stop, at an iteration."""
    config = config_of(digits, tmp_path, "run")
    job = Fleet(config, 2, tmp_path / "logs", partial(open_slowly, folder=tmp_path))
    wait_for(lambda: len(list(tmp_path.glob("opening-*"))) == 2, "both ranks")
    os.kill(job.ranks[1].pid or 0, signal.SIGTERM)
    wait_for((tmp_path / "asked-1").exists, "the request")
    (tmp_path / "go").touch()
    assert job.wait(60) == [EXIT_PREEMPTED] * 2, job.said(0)
    newest = Checkpoints(config.run_folder / "checkpoints", config.checkpoint).newest()
    assert newest is not None and newest.iteration <= 2


def copy_slowly(rank: int, copying: Path) -> None:
    from pipeline.data import staging

    def slow(*arguments: object) -> None:
        copying.touch()
        time.sleep(FOR_EVER)

    staging._copy = slow


def test_while_shards_are_copied(digits: Path, tmp_path: Path) -> None:
    """Copying takes hours for ImageNet, and changes nothing that would have to be saved."""
    config = config_of(digits, tmp_path, "run")
    config = replace(config, loader=replace(config.loader, stage_to=str(tmp_path / "disk")))
    job = Fleet(config, 2, tmp_path / "logs", partial(copy_slowly, copying=tmp_path / "copying"))
    wait_for((tmp_path / "copying").exists, "the copying")
    for rank in (1, 0):  # rank 1 waits for rank 0, whose end would be its failure
        os.kill(job.ranks[rank].pid or 0, signal.SIGTERM)
    assert job.wait(60) == [EXIT_PREEMPTED] * 2, job.said(0)
