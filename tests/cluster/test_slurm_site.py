"""What a site demands, on a real SLURM: sbatch's options arrive, and nothing of a job that a job is submitted from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.base.layout import SLURM, job_log
from tests.cluster.slurm_cluster import GPU_KIND, GPUS, SlurmCluster
from tests.helpers import ROOT, wait_for
from tests.launch.launchers import environment

pytestmark = pytest.mark.cluster

SITE = """
cpus_per_gpu: 1
time: '5'
signal_delay: 30
assume_shared: true  # the nodes are namespaces of this machine
sbatch: {gres: gpu:%s:1, exclude: 'node[3-4]', nice: 7}
"""
COMMAND = (sys.executable, str(ROOT / "launch" / "slurm_command.py"))


class Site:
    """Submits `env` as jobs of a site whose GPUs are asked for by --gres."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "site.yaml").write_text(SITE % GPU_KIND)

    def words(self, name: str, *options: str) -> list[str]:
        words = [*COMMAND, "--site", str(self.folder / "site.yaml"), "--name", name, "--folder", name, "--json"]
        return [*words, *options, "--", "env"]

    def submit(self, name: str, *options: str, extra: Mapping[str, str] | None = None) -> str:
        done = self.cluster.run(self.words(name, *options), cwd=self.folder, extra=environment(extra), check=False)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout.splitlines()[-1])["job_id"])

    def refusal(self, *options: str) -> str:
        done = self.cluster.run(self.words("refused", *options), cwd=self.folder, extra=environment(), check=False)
        assert done.returncode == 2, done.stdout
        (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return sentence

    def log(self, name: str, job: str) -> str:
        return (self.folder / name / SLURM / job_log(job)).read_text()

    def printed(self, name: str, job: str) -> dict[str, str]:
        """The environment of the job's task, once it has ended well."""
        ended = lambda: self.cluster.state(job) in ("COMPLETED", "FAILED", "CANCELLED")  # noqa: E731
        wait_for(ended, f"the end of job {job}", 120)
        assert self.cluster.state(job) == "COMPLETED", self.log(name, job)
        text = (self.folder / name / SLURM / job_log(job)).with_suffix(".out").read_text()
        return dict(line.partition("=")[::2] for line in text.splitlines())


@pytest.fixture(scope="module")
def site(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(slurm, tmp_path_factory.mktemp("site"))


def test_what_is_asked_for_arrives(site: Site) -> None:
    """The site's options and a user's own, with characters that a shell, submitit and sbatch would take for theirs."""
    cluster, comment = site.cluster, 'it\'s a \\ # "quoted" $HOME `id`'
    asked = ("ReservationName=school", "StartTime=now", "Duration=60", "Users=root", "Nodes=node2")
    cluster.run(["scontrol", "create", "reservation", *asked])
    try:
        options = (
            "--reservation",
            "school",
            "--mem-per-cpu",
            "100M",
            "--mail-type",
            "END",
            "--sbatch.comment",
            comment,
        )
        job = site.submit("asked", *options)
        found = {
            name: cluster.field(job, name) for name in ("TresPerNode", "Reservation", "ExcNodeList", "Nice", "MailType")
        }
        site.printed("asked", job)
    finally:
        wait_for(
            lambda: cluster.run(["scontrol", "delete", "ReservationName=school"], check=False).returncode == 0,
            "the reservation to go",
        )
    assert found.pop("TresPerNode").endswith(f"gpu:{GPU_KIND}:1")
    assert found == {"Reservation": "school", "ExcNodeList": "node[3-4]", "Nice": "7", "MailType": "END"}
    assert cluster.field(job, "NodeList") == "node2"
    assert cluster.field(job, "MinMemoryCPU") == "100M"
    shown = cluster.run(["scontrol", "show", "job", job]).stdout
    assert f"Comment={comment}" in shown
    assert "wckey" not in next((site.folder / "asked" / SLURM).glob(f"{job}_submission.sh")).read_text()


def test_typed_gpus_and_all_memory(site: Site) -> None:
    job = site.submit("typed", "--gpus-per-node", f"{GPU_KIND}:{len(GPUS)}", "--mem-gb", "0", "--exclusive")
    task = site.printed("typed", job)
    assert task["SLURM_GPUS_ON_NODE"] == "1"  # one task, one GPU
    assert site.cluster.field(job, "OverSubscribe") == "NO"
    assert "not available" in site.refusal("--gpus-per-node", "v100:1")
    assert "unrecognized option '--nonsense=3'" in site.refusal("--sbatch.nonsense", "3")
    assert "give --nodes" in site.refusal("--sbatch.nodes", "3")


def test_a_job_that_hands_on_nothing_of_its_users_environment_reaches_its_ranks(site: Site) -> None:
    job = site.submit("none", "--sbatch.export", "NONE", extra={"LEFT_BEHIND": "1"})
    task = site.printed("none", job)
    assert task["SUBMITIT_EXECUTOR"] == "slurm" and "LEFT_BEHIND" not in task


def test_a_job_is_submitted_from_inside_a_job(site: Site) -> None:
    """The outer job has memory by the core, the inner one by the node: SLURM refuses to start a step that has both."""
    script = site.folder / "outer.sh"
    inner = " ".join(f"'{word}'" for word in site.words("inner", "--mem-gb", "0.5"))
    script.write_text(f"#!/bin/bash\ncd {site.folder}\nexport PYTHONPATH={ROOT}\nsrun --mem-per-cpu=50M {inner}\n")
    asked = ("--mem-per-cpu=100M", "--cpus-per-task=2", "--gres=gpu:2", "-o", str(site.folder / "outer.log"))
    outer = site.cluster.run(["sbatch", *asked, str(script)], extra=environment()).stdout.split()[-1]
    wait_for(lambda: site.cluster.state(outer) in ("COMPLETED", "FAILED"), "the end of the outer job", 120)
    text = (site.folder / "outer.log").read_text()
    assert site.cluster.state(outer) == "COMPLETED", text
    job = str(json.loads(text.splitlines()[-1])["job_id"])
    task = site.printed("inner", job)
    assert task["PIPELINE_JOB"] == f"SLURM_JOB_ID={job}" and task["SLURM_JOB_ID"] == job
    assert task["SLURM_MEM_PER_NODE"] == "512" and "SLURM_MEM_PER_CPU" not in task
    assert task["SLURM_CPUS_PER_TASK"] == "1"
