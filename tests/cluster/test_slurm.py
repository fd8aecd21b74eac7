"""launch/slurm.py on a real SLURM of four nodes: real trainings, interrupted by everything that interrupts them.

The reference is the same training in one process that nothing interrupts; equal means every byte of the final checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys

import pytest

from tests.cluster.conftest import Trainings
from tests.cluster.slurm_cluster import SlurmCluster, wait_for
from tests.conftest import ROOT
from tests.launch.doors import environment, final_checkpoint

pytestmark = pytest.mark.cluster

LONG = ("--iterations", "300", "--checkpoint.every", "20", "--evaluation.every", "1000")


def test_resnet152_on_four_nodes(trainings: Trainings) -> None:
    run = trainings.submit(
        "big",
        *("--arch", "resnet152", "--nodes", "4", "--iterations", "2", "--batch", "16", "--bn_group", "4"),
        *(
            "--tracking.mlflow",
            "true",
            "--checkpoint.every",
            "2",
            "--evaluation.every",
            "2",
            "--recompute_bn_images",
            "0",
        ),
    )
    assert run.wait_for_end() == "COMPLETED", run.log()
    facts = json.loads((run.folder / "run.json").read_text())
    assert len(facts["attempts"]) == 1
    assert (facts["attempts"][0]["launcher"], facts["attempts"][0]["world_size"]) == ("slurm", 4)
    assert final_checkpoint(run.folder).startswith("00000002-")
    assert len(list((run.folder / "slurm").glob(f"{run.job}_?_log.out"))) == 4  # a log for each rank
    with sqlite3.connect(run.folder.parent / "mlflow.db") as store:
        names = [name for (name,) in store.execute("select name from runs")]
    assert names == ["big"]


def test_signal_and_killed_rank(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    run = trainings.submit("signal", "--nodes", "2", *LONG)
    run.wait_for_iteration(40)
    trainings.cluster.run(["scancel", "--signal=USR2", run.job])
    seconds_lost["USR2 to running again"] = run.wait_for_attempt(1)
    at = run.iteration()
    run.wait_for_iteration(at + 40)
    for node in trainings.cluster.nodes:
        if ranks := trainings.cluster.processes(node, "submitit.core._submit"):
            os.kill(ranks[-1], signal.SIGKILL)
            break
    seconds_lost["kill -9 of a rank to running again"] = run.wait_for_attempt(2)
    assert run.wait_for_end() == "COMPLETED", run.log()
    assert final_checkpoint(run.folder) == trainings.reference(300)
    logged = run.iterations_logged()
    assert logged == sorted(set(logged)) and logged[-1] == 300
    # What SIGKILL ended was requeued, and noted; what saved and requeued itself was no failure.
    assert len((run.folder / "slurm" / f"{run.job}.failures").read_text().splitlines()) == 1


def test_cancelled_is_cancelled(trainings: Trainings) -> None:
    run = trainings.submit("cancelled", "--nodes", "2", *LONG)
    run.wait_for_iteration(20)
    trainings.cluster.run(["scancel", run.job])
    assert run.wait_for_end() == "CANCELLED"
    with pytest.raises(AssertionError, match="waited"):
        wait_for(lambda: trainings.cluster.state(run.job) != "CANCELLED", 15, "a comeback")
    # The same command goes on, and ends where one that was never cancelled does.
    again = trainings.submit("cancelled", "--nodes", "2", *LONG)
    assert again.wait_for_end() == "COMPLETED", again.log()
    assert final_checkpoint(run.folder) == trainings.reference(300)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--partition", "hig"), "did you mean 'high'"),
        (("--time", "5-0"), "over the partition's limit"),
        (("--nodes", "8"), "more than the partition has"),
        (("--nodes", "3"), "batch 16 is not divided by 3 processes"),
        (("--constraint", "a100"), "Invalid feature specification"),
        (("--gpus-per-node", "8", "--batch", "64"), "Invalid generic resource"),
        (("--name", "a'; touch /tmp/x"), "run name"),
        (("--partition", "debug\ntouch /tmp/x"), "--partition"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_before_anything_is_submitted(trainings: Trainings, options: tuple[str, ...], expected: str) -> None:
    before = trainings.cluster.run(["squeue", "--noheader", "--states=all"]).stdout.splitlines()
    done = trainings.slurm_py("--name", "mistake", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and expected in done.stderr
    after = trainings.cluster.run(["squeue", "--noheader", "--states=all"]).stdout.splitlines()
    assert {line.split()[0] for line in after} <= {line.split()[0] for line in before}


def test_a_crash_loop_stops(trainings: Trainings) -> None:
    """A training whose every start fails (its lock file is a folder) is requeued as often as asked, then fails."""
    run_folder = trainings.folder / "runs" / "loop"
    (run_folder / ".lock").mkdir(parents=True)
    run = trainings.submit("loop", "--nodes", "1", "--iterations", "8", "--requeue-limit", "1")
    assert run.wait_for_end() == "FAILED"
    assert run.restarts() == 1
    command = [sys.executable, str(ROOT / "launch" / "status.py"), str(run.folder), "--json"]
    status = json.loads(trainings.cluster.run(command, extra=environment()).stdout.splitlines()[-1])
    assert status["jobs"] == {run.job: "FAILED"}
    assert len(status["errors"]) == 2 and "IsADirectoryError" in status["errors"][0]


@pytest.mark.slow
def test_requeue_and_preemption(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    run = trainings.submit("requeue", "--nodes", "2", *LONG)
    run.wait_for_iteration(40)
    trainings.cluster.run(["scontrol", "requeue", run.job])
    seconds_lost["scontrol requeue to running again"] = run.wait_for_attempt(1)
    run.wait_for_iteration(run.iteration() + 40)
    high = ["sbatch", "-p", "high", "-N", "4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    trainings.cluster.run(high)
    seconds_lost["preempted for a job of 2 s to running again"] = run.wait_for_attempt(2)
    assert run.wait_for_end() == "COMPLETED", run.log()
    assert final_checkpoint(run.folder) == trainings.reference(300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_time_limits_than_submitit_would_count(trainings: Trainings) -> None:
    """One-minute limits with the signal 45 s before: the fifth start is one more than submitit's own three time-outs."""
    short = ("--time", "1", "--signal-delay", "45", "--iterations", "2000", "--evaluation.every", "10000")
    run = trainings.submit("limit", "--nodes", "2", *short, "--checkpoint.every", "10000")
    assert run.wait_for_end(600) == "COMPLETED", run.log()
    assert run.restarts() >= 4
    assert final_checkpoint(run.folder) == trainings.reference(2000)


@pytest.mark.slow
def test_node_without_power(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    cluster = trainings.cluster
    run = trainings.submit("power", "--nodes", "2", *LONG)
    run.wait_for_iteration(40)
    lost = nodes_of(cluster, run.job)[-1]
    cluster.power_off(lost)
    try:
        seconds_lost["power loss of a node to running on a spare"] = run.wait_for_attempt(1)
        assert lost not in nodes_of(cluster, run.job)
        assert run.wait_for_end() == "COMPLETED", run.log()
    finally:
        cluster.power_on(lost)
        cluster.wait_for_nodes(60)
    assert final_checkpoint(run.folder) == trainings.reference(300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attempt_that_was_cut_off_is_fenced(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    """The node trains on without network while SLURM starts the job elsewhere; then the cable is plugged in again."""
    cluster = trainings.cluster
    # Long enough that the old attempt is still training when the new one starts.
    options = ("--arch", "resnet20", "--iterations", "2500", "--checkpoint.every", "20", "--evaluation.every", "10000")
    run = trainings.submit("cut", "--nodes", "1", *options)
    run.wait_for_iteration(40)
    (cut,) = nodes_of(cluster, run.job)
    cluster.unplug(cut)
    try:
        seconds_lost["network cut to running elsewhere"] = run.wait_for_attempt(1)
        # The old attempt was alive until the new one took the lease.
        seconds_lost["new attempt running to old attempt gone"] = wait_for(
            lambda: not cluster.processes(cut, "submitit.core._submit"), 40, "the fence"
        )
        assert "has taken" in run.log()  # its last word, or the refusal of what it wanted to publish
        run.wait_for_iteration(run.iteration() + 40)
    finally:
        cluster.plug(cut)
    assert run.wait_for_end(500) == "COMPLETED", run.log()
    assert run.restarts() == 1  # its return has not disturbed the new attempt
    logged = run.iterations_logged()
    assert logged == sorted(set(logged))
    assert final_checkpoint(run.folder) == trainings.reference(2500, "resnet20")
    cluster.wait_for_nodes(60)


def nodes_of(cluster: SlurmCluster, job: str) -> list[str]:
    names = cluster.run(["squeue", "--noheader", "--jobs", job, "--format", "%N"]).stdout.strip()
    return cluster.run(["scontrol", "show", "hostnames", names]).stdout.split()
