"""launch/slurm.py on a real SLURM of four nodes: real trainings, interrupted by everything that interrupts them.

The reference is the same training in one process that nothing interrupts; equal means every byte of the final checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.attempt import read_holder
from tests import patience
from tests.cluster.conftest import ENDLESS, Run, Trainings
from tests.cluster.slurm_cluster import SlurmCluster
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import environment, final_checkpoint
from tests.listening import documented, places

pytestmark = pytest.mark.cluster

LONG = ("--iterations", "300", "--checkpoint.every", "20", "--evaluation.every", "10000")


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
            "--tracking.close-seconds",
            str(patience.limit(300)),
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


@pytest.mark.timeout(600)
def test_interruptions_that_leave_the_nodes_alive(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    """One training through the time limit, `scontrol requeue`, preemption and the SIGKILL of a rank."""
    cluster = trainings.cluster
    run = trainings.submit("interrupted", "--nodes", "2", *ENDLESS)
    run.wait_for_iteration(20)
    # SLURM gives its notice when it next looks at time limits, every 30 s: some of them must be left.
    _, minutes, seconds = cluster.field(run.job, "RunTime").rpartition("-")[2].split(":")
    limit = -(-(60 * int(minutes) + int(seconds) + 45) // 60)
    cluster.run(["scontrol", "update", f"JobId={run.job}", f"TimeLimit={limit}"])
    wait_for(lambda: run.restarts() == 1, "the time limit's notice", 120)
    cluster.run(["scontrol", "update", f"JobId={run.job}", "TimeLimit=30"])
    seconds_lost["saved at the time limit's notice to running again"] = run.wait_for_attempt(1)
    run.wait_for_iteration(run.iteration() + 20)
    cluster.run(["scontrol", "requeue", run.job])
    seconds_lost["scontrol requeue to running again"] = run.wait_for_attempt(2)
    run.wait_for_iteration(run.iteration() + 20)
    cluster.run(["sbatch", "-p", "high", "-N", "4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"])
    seconds_lost["preempted for a job of 2 s to running again"] = run.wait_for_attempt(3)
    run.wait_for_iteration(run.iteration() + 20)
    nodes = nodes_of(cluster, run.job)
    os.kill(cluster.processes(nodes[-1], "submitit.core._submit")[-1], signal.SIGKILL)
    seconds_lost["kill -9 of a rank to running again"] = run.wait_for_attempt(4)
    run.save_and_end()
    assert run.kept() == trainings.uninterrupted(max(run.kept()))
    logged = run.iterations_logged()
    assert logged == [*range(4, logged[-1] + 1, 4)]
    # What SIGKILL ended was requeued, and noted with rank, signal and node; what saved and requeued itself was no failure.
    assert len((run.folder / "slurm" / f"{run.job}.failures").read_text().splitlines()) == 1
    named = f"was killed by SIGKILL on {nodes[-1]}"
    assert f"error: attempt 3 failed, rank 1: {named}" in run.log()
    assert [named in sentence for sentence in run.status()["errors"]] == [True]


@pytest.mark.timeout(900)
def test_lost_nodes(trainings: Trainings, seconds_lost: dict[str, float]) -> None:
    """One training whose node loses its slurmd, then one that is rebooted, then one whose network is cut."""
    cluster, lost = trainings.cluster, ""
    run = trainings.submit("lost", "--nodes", "1", *ENDLESS)

    def ranks() -> list[int]:
        return cluster.processes(lost, "submitit.core._submit")

    def wait_elsewhere(attempt: int) -> float:
        """The attempt before trains on, out of SLURM's reach, and sleeps (a fast machine would finish) until it is replaced."""
        started = time.monotonic()
        old = [pid for pid in ranks() if "srun" not in Path(f"/proc/{pid}/comm").read_text()]
        run.wait_for_iteration(run.iteration() + 20)
        for pid in old:
            os.kill(pid, signal.SIGSTOP)
        run.wait_for_attempt(attempt)
        seconds = time.monotonic() - started
        wait_for(lambda: read_holder(run.folder).attempts == {f"SLURM_JOB_ID={run.job}": attempt}, "the lease", 240)
        for pid in old:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: not ranks(), "the fence")
        return seconds

    run.wait_for_iteration(20)
    (lost,) = nodes_of(cluster, run.job)
    cluster.kill_slurmd(lost)
    try:
        seconds_lost["slurmd killed to running elsewhere"] = wait_elsewhere(1)
    finally:
        cluster.start_slurmd(lost)
    run.wait_for_iteration(run.iteration() + 20)
    (lost,) = nodes_of(cluster, run.job)
    cluster.reboot(lost)
    seconds_lost["node rebooted to running again"] = run.wait_for_attempt(2)
    run.wait_for_iteration(run.iteration() + 20)
    (lost,) = nodes_of(cluster, run.job)
    cluster.unplug(lost)
    try:
        seconds_lost["network cut to running elsewhere"] = wait_elsewhere(3)
        run.wait_for_iteration(run.iteration() + 20)
    finally:
        cluster.plug(lost)
    run.save_and_end()
    assert run.restarts() == 3  # what came back has not disturbed the new attempts
    logged = run.iterations_logged()
    assert logged == [*range(4, logged[-1] + 1, 4)]
    assert run.kept() == trainings.uninterrupted(max(run.kept()))
    cluster.wait_for_nodes(60)


def test_a_node_without_the_dataset(trainings: Trainings, digits: Path) -> None:
    """As where a node has not mounted the storage: one sentence that names it, and no other start."""
    trainings.cluster.hide("node2", digits)
    try:
        run = trainings.submit("blind", "--nodes", "4", "--iterations", "4")
        assert run.wait_for_end() == "FAILED"
    finally:
        trainings.cluster.show_again("node2", digits)
    assert run.restarts() == 0
    assert run.status()["errors"] == [f"node2 sees nothing in {digits}: put it on storage that every node mounts"]


@pytest.mark.timeout(600)
def test_evaluation(trainings: Trainings) -> None:
    """On two nodes, and by a command that waits for the training: the same scores."""
    run = trainings.submit("evaluated", "--nodes", "1", "--iterations", "8")
    command = [sys.executable, str(ROOT / "launch" / "slurm_command.py"), "--site", str(trainings.site), "--json"]
    command += ["--name", "scores", "--folder", str(run.folder / "waiting"), "--after", run.job, "--", sys.executable]
    command += ["-m", "pipeline.evaluate", str(run.folder), "--protocol", "ten-crop"]
    done = trainings.cluster.run(command, cwd=trainings.folder, extra=environment())
    waiting = Run(trainings.cluster, run.folder / "waiting", json.loads(done.stdout.splitlines()[-1])["job_id"])
    assert waiting.wait_for_end(400) == "COMPLETED", waiting.log()
    scores = np.load(run.folder / "scores" / "ten-crop-val-00000008.npz")["scores"]
    evaluate = [str(run.folder.relative_to(trainings.folder)), "--protocol", "ten-crop", "--again"]
    done = trainings.slurm_py("--nodes", "2", evaluate=evaluate)
    assert done.returncode == 0, done.stderr
    again = Run(trainings.cluster, run.folder / "evaluation", json.loads(done.stdout.splitlines()[-1])["job_id"])
    assert again.wait_for_end() == "COMPLETED", again.log()
    np.testing.assert_array_equal(np.load(run.folder / "scores" / "ten-crop-val-00000008.npz")["scores"], scores)


def test_sigint_saves_and_ends_for_good(trainings: Trainings) -> None:
    """Ctrl-C's signal is the user's, not the scheduler's: saved, and not put back into the queue."""
    run = trainings.submit("sigint", "--nodes", "2", *ENDLESS, "--checkpoint.every", "100000")
    run.wait_for_iteration(20)
    trainings.cluster.run(["scancel", "--signal=INT", run.job])
    assert run.wait_for_end() == "FAILED", run.log()
    assert "was interrupted; the job ends here" in run.log() and "saved at iteration" in run.log()
    assert int(final_checkpoint(run.folder)[:8]) >= 20
    assert run.restarts() == 0 and not list((run.folder / "slurm").glob("*.failures"))


def test_what_listens(trainings: Trainings) -> None:
    """Exactly what docs/clusters.md says."""
    cluster, run = trainings.cluster, trainings.submit("listening", "--nodes", "2", *ENDLESS)
    run.wait_for_iteration(20)
    found = [pid for node in nodes_of(cluster, run.job) for pid in cluster.processes(node, "submitit.core._submit")]
    ranks = [pid for pid in found if "srun" not in Path(f"/proc/{pid}/comm").read_text()]
    seen = places(ranks)
    cluster.run(["scancel", run.job])
    assert seen == documented("launch/slurm.py --nodes 4")


def test_cancelled_is_cancelled(trainings: Trainings) -> None:
    run = trainings.submit("cancelled", "--nodes", "2", *LONG)
    run.wait_for_iteration(20)
    trainings.cluster.run(["scancel", run.job])
    assert run.wait_for_end() == "CANCELLED"
    with pytest.raises(AssertionError, match="waited"):
        wait_for(lambda: trainings.cluster.state(run.job) in ("PENDING", "RUNNING"), "a comeback", 15)
    # The same command goes on, and ends where one that was never cancelled does.
    again = trainings.submit("cancelled", "--nodes", "2", *LONG)
    assert again.wait_for_end() == "COMPLETED", again.log()
    assert final_checkpoint(run.folder) == trainings.reference(300)


MISTAKES = (
    (("--partition", "hig"), "did you mean 'high'"),
    (("--time", "5-0"), "over the partition's limit"),
    (("--nodes", "8"), "more than the partition has"),
    (("--nodes", "3"), "batch 16 is not divided by 3 processes"),
    (("--constraint", "a100"), "Invalid feature specification"),
    (("--sbatch.gres", "tpu:2"), "Invalid generic resource"),
    (("--name", "a'; touch /tmp/x"), "run name"),
    (("--partition", "debug\ntouch /tmp/x"), "--partition"),
    (("--data", "nowhere"), "nowhere"),
    (("--site", "/dev/null", "--gpus-per-node", "0", "--time", "30"), "only this host sees"),
)
ONE_BY_ONE = """
import json, sys
from launch.slurm import main
from pipeline.base.command import UserError
for options in json.loads(sys.argv[1]):
    try:
        print(json.dumps(f"exit code {main(options)}"))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_mistakes_before_anything_is_submitted(trainings: Trainings) -> None:
    queue = ["squeue", "--noheader", "--states=all", "--format=%i"]
    before = trainings.cluster.run(queue).stdout.split()
    common = ("--config", str(trainings.config), "--site", str(trainings.site), "--name", "mistake")
    command = [sys.executable, "-c", ONE_BY_ONE, json.dumps([(*common, *options) for options, _ in MISTAKES])]
    done = trainings.cluster.run(command, cwd=trainings.folder, extra=environment())
    sentences = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(sentences) == len(MISTAKES)
    for sentence, (_, expected) in zip(sentences, MISTAKES, strict=True):
        assert expected in sentence and "\n" not in sentence
    assert set(trainings.cluster.run(queue).stdout.split()) <= set(before)
    # As its user sees it.
    done = trainings.slurm_py("--name", "mistake", "--nodes", "3")
    assert done.returncode == 2
    first, *sentences = done.stderr.splitlines()
    assert first.startswith("submitting: resnet8 on ") and len(sentences) == 1
    assert sentences[0].startswith("error: batch 16")


CRASHES = """
import os

def crash(pid):
    raise LookupError("of the test")

if "SLURM_PROCID" in os.environ:
    os.sched_getaffinity = crash
"""


def test_a_crash_loop_stops(trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose every start crashes is requeued as often as asked, then fails."""
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = trainings.submit("loop", "--nodes", "1", "--iterations", "8", "--requeue-limit", "1")
    assert run.wait_for_end() == "FAILED"
    assert run.restarts() == 1
    status = run.status()
    assert status["jobs"] == {run.job: "FAILED"}
    assert len(status["errors"]) == 2 and "LookupError: of the test" in status["errors"][0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_time_limits_than_submitit_would_count(trainings: Trainings) -> None:
    """One-minute limits with the signal 45 s before: the fifth start is one more than submitit's own three time-outs."""
    run = trainings.submit("limit", "--nodes", "2", "--time", "1", "--signal-delay", "45", *ENDLESS)
    run.wait_for_attempt(4, 600)
    trainings.cluster.run(["scontrol", "update", f"JobId={run.job}", "TimeLimit=30"])
    run.save_and_end()
    assert run.kept() == trainings.uninterrupted(max(run.kept()))


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


def nodes_of(cluster: SlurmCluster, job: str) -> list[str]:
    names = cluster.run(["squeue", "--noheader", "--jobs", job, "--format", "%N"]).stdout.strip()
    return cluster.run(["scontrol", "show", "hostnames", names]).stdout.split()
