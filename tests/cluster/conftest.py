from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.layout import CHECKPOINTS, checkpoints_in
from pipeline.tracking.journal import last_iteration
from tests.cluster.slurm_cluster import SlurmCluster, missing_programs, why_not
from tests.conftest import skip_without
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import TINY, environment, final_checkpoint
from tests.patience import limit

SITE = """
gpus_per_node: 0
cpus_per_gpu: 1
time: '30'
signal_delay: 30
assume_shared: true  # the nodes are namespaces of this machine
setup:
- export GLOO_SOCKET_IFNAME=eth0
- export OMP_NUM_THREADS=1
"""


KEPT_EVERY = 100  # iterations
# What tests interrupt: no machine is fast enough to end it first. Its length changes no update, because the learning rate of
# TINY falls once, at iteration 8.
ENDLESS = ("--iterations", "1000000", "--evaluation.every", "1000000", "--checkpoint.every", "20")
ENDLESS += ("--checkpoint.keep_every", str(KEPT_EVERY))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A SLURM of four nodes."""
    if missing := missing_programs():
        skip_without(missing)
    if reason := why_not():
        pytest.skip(reason)
    # Nodes run as other users too (munge): a folder below /tmp that everyone may enter.
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o055)
    cluster = SlurmCluster.up(folder / "cluster")
    try:
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.down()


@dataclass(frozen=True)
class Run:
    """A submitted training."""

    cluster: SlurmCluster
    folder: Path
    job: str

    def wait_for_iteration(self, iteration: int, seconds: float = 240) -> float:
        return wait_for(lambda: self.iteration() >= iteration, f"iteration {iteration} of {self.folder}", seconds)

    def iteration(self) -> int:
        return last_iteration(self.folder / "metrics.jsonl")

    def restarts(self) -> int:
        return int(self.cluster.field(self.job, "Restarts"))

    def status(self) -> dict[str, Any]:
        """What launch/status.py says."""
        command = [sys.executable, str(ROOT / "launch" / "status.py"), str(self.folder), "--json"]
        return json.loads(self.cluster.run(command, extra=environment()).stdout.splitlines()[-1])

    def wait_for_attempt(self, number: int, seconds: float = 120) -> float:
        """Seconds until restart `number` of the job runs."""
        running = lambda: self.restarts() >= number and self.cluster.state(self.job) == "RUNNING"  # noqa: E731
        return wait_for(running, f"attempt {number}: {self.log()}", seconds)

    def wait_for_end(self, seconds: float = 180) -> str:
        over, seen = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), [""]

        def ended() -> bool:
            seen.append(self.cluster.state(self.job))
            return seen[-1] in over

        wait_for(ended, f"the end: {self.log()}", seconds)
        return seen[-1]

    def save_and_end(self) -> None:
        """Wait for the next checkpoint that is kept, then send Ctrl-C's signal: the job saves and ends for good."""
        passed = self.iteration()
        wait_for(lambda: max(self.kept(), default=0) > passed, f"a checkpoint after {passed} of {self.folder}", 240)
        self.cluster.run(["scancel", "--signal=INT", self.job])
        assert self.wait_for_end() == "FAILED", self.log()
        assert "saved at iteration" in self.log()

    def kept(self) -> dict[int, str]:
        return kept_checkpoints(self.folder)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.folder / "slurm").glob("*_log.err")))

    def iterations_logged(self) -> list[int]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line["iteration"] for line in lines if line["kind"] == "train"]


def kept_checkpoints(run_folder: Path) -> dict[int, str]:
    """The names (iteration, digest) of the checkpoints that ENDLESS trainings keep, by iteration."""
    found = checkpoints_in(run_folder / CHECKPOINTS)
    return {iteration: path.name for iteration, path in found if iteration % KEPT_EVERY == 0}


class Trainings:
    """Submits trainings of the tiny config by launch/slurm.py, and trains the same alone for comparison."""

    def __init__(self, cluster: SlurmCluster, folder: Path, digits: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.config, self.site = folder / "tiny.yaml", folder / "site.yaml"
        self.config.write_text(TINY.format(data=digits))
        self.site.write_text(SITE)
        self.references: dict[str, subprocess.Popen[bytes]] = {}

    def slurm_py(self, *options: str, evaluate: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """launch/slurm.py: a training, or the evaluation by these words of pipeline.evaluate."""
        config = [] if evaluate else ["--config", str(self.config)]
        words = [
            *config,
            *options,
            "--site",
            str(self.site),
            "--json",
            *(["--evaluate", *evaluate] if evaluate else []),
        ]
        command = [sys.executable, str(ROOT / "launch" / "slurm.py"), *words]
        return self.cluster.run(command, cwd=self.folder, extra=environment(), check=False)

    def submit(self, name: str, *options: str) -> Run:
        done = self.slurm_py("--name", name, *options)
        assert done.returncode == 0, done.stderr
        return Run(self.cluster, self.folder / "runs" / name, json.loads(done.stdout.splitlines()[-1])["job_id"])

    def reference(self, iterations: int) -> str:
        """The final checkpoint of the same training, in one process that nothing interrupts."""
        options = ("--iterations", str(iterations), "--evaluation.every", "10000", "--checkpoint.every", "100000")
        folder, process = self._alone(f"alone-{iterations}", options)
        assert process.wait(timeout=limit(400)) == 0
        return final_checkpoint(folder)

    def uninterrupted(self, iteration: int) -> dict[int, str]:
        """The checkpoints up to `iteration` that the ENDLESS training keeps in one process that nothing interrupts.

        The process is stopped until a test asks for a later iteration.
        """
        patient = ("--timeout-seconds", "100000")  # else its watchdog would take that time for a hang
        folder, process = self._alone("alone-endless", (*ENDLESS, *patient))
        process.send_signal(signal.SIGCONT)
        try:
            wait_for(lambda: iteration in kept_checkpoints(folder), f"iteration {iteration} of {folder}", 400)
        finally:
            process.send_signal(signal.SIGSTOP)
        return {kept: name for kept, name in kept_checkpoints(folder).items() if kept <= iteration}

    def _alone(self, name: str, options: Sequence[str]) -> tuple[Path, subprocess.Popen[bytes]]:
        if name not in self.references:
            command = [sys.executable, "-m", "pipeline.train", "--config", str(self.config), "--name", name, *options]
            self.references[name] = subprocess.Popen(
                command, cwd=self.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        return self.folder / "runs" / name, self.references[name]


@pytest.fixture(scope="session")
def trainings(slurm: SlurmCluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    made = Trainings(slurm, tmp_path_factory.mktemp("trainings"), digits)
    yield made
    for process in made.references.values():
        process.kill()
        process.wait()


@pytest.fixture
def seconds_lost(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, float]]:
    """What a test measured, printed at its end (pytest -s not needed)."""
    measured: dict[str, float] = {}
    yield measured
    with capsys.disabled():
        for event, seconds in measured.items():
            print(f"\n{re.sub('^test_', '', request.node.name)}: {event} {seconds:.1f} s")
