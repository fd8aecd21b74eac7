"""What becomes of a job whose attempt failed: srun's own words (kept from SLURM 22.05), and the requeueing they lead to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from launch.on_slurm import ending
from launch.ranks.failure import Failure, cause, note, read_all_notes, read_notes
from pipeline.base.layout import failure_note

KILLED = """\
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=2.1
slurmstepd-node1: error: *** STEP 2.1 ON node1 CANCELLED AT 2026-11-22T02:07:31 ***
RuntimeError: Connection closed by peer [10.77.0.12]:63638.
srun: error: node1: task 0: Exited with exit code 1
srun: Force Terminated StepId=2.1
"""


@pytest.mark.parametrize(
    ("text", "rank", "code", "sentence"),
    [
        (KILLED, 1, 137, "was killed by SIGKILL on node2 (the kernel does that when memory runs out)"),
        ("srun: error: n7: tasks 8-15: Segmentation fault (core dumped)\n", 8, 139, "was killed by SIGSEGV on n7"),
        ("srun: error: n7: tasks 3,5: Out Of Memory\n", 3, 137, "ran out of memory on n7: ask for more by mem_gb"),
        ("srun: error: n1: task 4: Exited with exit code 2\n", 4, 2, "exited with exit code 2 on n1"),
    ],
)
def test_the_rank_that_failed_first(text: str, rank: int, code: int, sentence: str) -> None:
    found = ending.first_failure(text)
    assert found is not None
    assert (found.rank, found.code, found.sentence) == (rank, code, sentence)


def test_nothing_to_see() -> None:
    assert ending.first_failure("iteration 3: loss 2.31\nsrun: Force Terminated StepId=2.1\n") is None


def explain(tmp_path: Path, log: str, code: int = 1) -> Failure:
    (tmp_path / "7_0_log.err").write_text("srun: error: node9: task 9: Killed\n" + log)  # of the attempt before
    start = len("srun: error: node9: task 9: Killed\n")
    return ending.explain(tmp_path / "logs", "7.1", tmp_path / "7_0_log.err", start, code)


def test_a_killed_rank_is_noted_in_its_name(tmp_path: Path) -> None:
    victim = Failure(rank=0, time=1.0, code=1, sentence="RuntimeError: Connection closed by peer")
    note(victim, tmp_path / "logs", "7.1", "7_0_log.err")
    found = explain(tmp_path, KILLED)
    assert (found.rank, found.code) == (1, 137)
    # launch/status.py reads the notes.
    shown = cause(read_all_notes(tmp_path / "logs")["7.1"])
    assert (shown.rank, shown.log) == (1, str(tmp_path / "7_1_log.err"))


def test_a_rank_that_says_why_is_believed(tmp_path: Path) -> None:
    own = Failure(rank=2, time=2.0, code=2, sentence="there is no folder here: make one")
    note(own, tmp_path / "logs", "7.1", "log")
    note(Failure(rank=0, time=1.5, code=1, sentence="Connection closed"), tmp_path / "logs", "7.1", "log")
    log = "srun: error: n2: task 2: Exited with exit code 2\nsrun: error: n1: task 0: Killed\n"
    assert explain(tmp_path, log).sentence == own.sentence


def test_what_ran_before_the_ranks_is_quoted(tmp_path: Path) -> None:
    found = explain(tmp_path, "error: n2 does not see /data\nsrun: error: n2: task 1: Exited with exit code 2\n", 2)
    assert (found.who, found.code, found.sentence) == ("the job", 2, "n2 does not see /data")
    assert [one.who for one in read_notes(tmp_path / "logs", "7.1")] == ["the job"]


def past(*checkpoints: int) -> list[ending.Ending]:
    values = {"time": 0.0, "code": 137, "sentence": "", "requeued": True}
    return [ending.Ending(attempt=i, checkpoint=at, **values) for i, at in enumerate(checkpoints)]


def test_only_failures_without_progress_count() -> None:
    assert ending.starts_again(137, 0, [], limit=1)
    assert not ending.starts_again(137, 0, past(0), limit=1)
    assert ending.starts_again(137, 20, past(0), limit=1)
    # As long as each attempt saves something new, no number of failures ends the job.
    assert ending.starts_again(1, 5000, past(*range(0, 5000, 100)), limit=3)
    assert not ending.starts_again(1, 5000, past(100, 5000, 5000, 5000), limit=3)
    assert not ending.starts_again(137, 0, [], limit=0)


@pytest.mark.parametrize("code", [2, 76])
def test_what_no_new_start_mends(code: int) -> None:
    assert not ending.starts_again(code, 100, past(0), limit=3)


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of job 7, whose attempt 0 was killed after iteration 40 had been saved; `ending.run` finds it there."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    monkeypatch.setattr(ending, "PAUSE_SECONDS", 0.0)
    folder = tmp_path / "runs" / "a" / "slurm"
    folder.mkdir(parents=True)
    (folder.parent / "checkpoints").mkdir()
    (folder.parent / "checkpoints" / "00000040-0123456789abcdef.pt").touch()
    (folder / "7_0_log.err").write_text(KILLED)
    return folder


def scontrol(folder: Path, *lines: str) -> None:
    """Stand-in for scontrol: keeps what it is asked, and then runs these shell lines; tests/cluster has the real one."""
    program = folder / "scontrol"
    program.write_text("\n".join(["#!/bin/sh", f'echo "$@" >>{folder}/asked', f"cd {folder}", *lines]) + "\n")
    program.chmod(0o755)


def asked(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "asked").read_text().splitlines()]


RUNNING = "echo JobId=7 JobState=RUNNING Restarts=0 Requeue=1"
# Fails as often as the file `silent` has bytes.
SILENT = '[ -s silent ] && { truncate -s -1 silent; echo "Unable to contact slurm controller" >&2; exit 1; }'


@pytest.mark.parametrize(
    ("state", "requeued"), [("RUNNING", True), ("CANCELLED", False), ("RUNNING Restarts=2", False)]
)
def test_the_job_is_requeued_only_while_it_is_this_attempts(
    tmp_path: Path, batch: Path, state: str, requeued: bool
) -> None:
    words = f"JobState={state} Restarts=0" if "Restarts" not in state else f"JobState={state}"
    scontrol(tmp_path, f"echo JobId=7 {words} Requeue=1")
    assert ending.run([str(batch), "--code", "137", "--limit", "3"]) == 0
    assert ("requeue" in asked(tmp_path)) == requeued
    assert (batch / "7.failures").exists() == requeued
    if requeued:
        assert json.loads((batch / "7.failures").read_text())["checkpoint"] == 40


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path, batch: Path) -> None:
    (tmp_path / "silent").write_text("...")
    scontrol(tmp_path, SILENT, RUNNING)
    assert ending.run([str(batch), "--code", "137", "--limit", "3"]) == 0
    assert asked(tmp_path) == ["show"] * 5 + ["requeue"]


def test_a_requeue_that_fails_is_tried_again(tmp_path: Path, batch: Path) -> None:
    (tmp_path / "silent").write_text("..")
    scontrol(tmp_path, f'[ "$1" = requeue ] && {SILENT}', RUNNING)
    assert ending.run([str(batch), "--code", "137", "--limit", "3"]) == 0
    assert asked(tmp_path) == ["show"] + ["show", "requeue"] * 3


def test_patience_ends(
    tmp_path: Path, batch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending, "PATIENCE_SECONDS", 0.0)
    scontrol(tmp_path, 'echo "Unable to contact slurm controller" >&2; exit 1')
    assert ending.run([str(batch), "--code", "137", "--limit", "3"]) == 1
    assert "did not say what job 7 does" in capsys.readouterr().err
    assert asked(tmp_path) == ["show"] and not (batch / "7.failures").exists()


def test_a_job_that_is_gone_is_not_asked_for_again(tmp_path: Path, batch: Path) -> None:
    scontrol(tmp_path, 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert ending.run([str(batch), "--code", "137", "--limit", "3"]) == 0
    assert asked(tmp_path) == ["show"]


@pytest.mark.parametrize(
    "words", ["Exited with exit code 75", "Terminated", "User defined signal 1", "User defined signal 2"]
)
def test_a_request_to_stop_is_no_crash(tmp_path: Path, batch: Path, words: str) -> None:
    """Even where no crash is allowed; as when preemption or the time limit's notice comes while the ranks import."""
    (batch / "7_0_log.err").write_text(f"srun: error: node2: task 1: {words}\n")
    scontrol(tmp_path, RUNNING)
    assert ending.run([str(batch), "--code", "143", "--limit", "0"]) == 0
    assert "requeue" in asked(tmp_path)
    assert not (batch / "7.failures").exists() and read_notes(batch.parent / "logs", "7.0") == []


def test_torn_lines_of_earlier_attempts_hold_nothing_up(tmp_path: Path) -> None:
    history = tmp_path / "7.failures"
    assert ending.read_endings(history) == []
    whole = past(0, 20)
    lines = [json.dumps(asdict(one)) for one in whole]
    torn = [lines[0][:20].encode(), b'{"attempt": 3}', b"\0\xff", lines[1][:-3].encode()]
    history.write_bytes(b"\n".join([lines[0].encode(), *torn[:3], lines[1].encode(), torn[3]]))
    assert ending.read_endings(history) == whole


def test_a_damaged_note_counts_as_none(tmp_path: Path) -> None:
    for rank, text in enumerate(("", "[", "[1]", "[" * 100_000, '{"rank": 1}')):
        failure_note(tmp_path, "7.1", rank).write_text(text)
    assert read_notes(tmp_path, "7.1") == [] and read_all_notes(tmp_path) == {}
