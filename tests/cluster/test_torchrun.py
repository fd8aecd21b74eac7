"""Plain torchrun over several hosts: one elastic agent each, meeting by rendezvous (both agents on this machine here)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import wait_for
from tests.launch.launchers import TINY, environment, final_checkpoint, launcher_of
from tests.patience import limit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_agents_and_a_killed_rank(tmp_path: Path, port: int, digits: Path) -> None:
    """The agents start all ranks anew after one was killed; the weights are those of one process that nothing interrupts."""
    (tmp_path / "tiny.yaml").write_text(TINY.format(data=digits))
    options = [
        "--config",
        "tiny.yaml",
        "--iterations",
        "200",
        "--checkpoint.every",
        "20",
        "--evaluation.every",
        "10000",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "my-run"]
    command = [*torchrun, *rendezvous, "--max-restarts", "3", "-m", "pipeline.train", *options, "--name", "run"]
    # docs/clusters.md says why.
    extra = environment({"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    logs = [open(tmp_path / f"agent-{number}.log", "w") for number in range(2)]  # noqa: SIM115
    agents = [subprocess.Popen(command, cwd=tmp_path, env=extra, stdout=log, stderr=log) for log in logs]
    run = tmp_path / "runs" / "run"
    try:
        wait_for(lambda: list((run / "checkpoints").glob("*.pt")), "a checkpoint", 200)
        os.kill(children(agents[1].pid)[-1], signal.SIGKILL)
        for agent in agents:
            assert agent.wait(timeout=limit(250)) == 0, "\n".join(Path(log.name).read_text() for log in logs)
    finally:
        for agent, log in zip(agents, logs, strict=True):
            agent.kill()
            agent.wait()
            log.close()
    attempts = (run / "run.json").read_text().count('"started"')
    assert attempts == 2 and launcher_of(run)[1] == 2
    alone = [sys.executable, "-m", "pipeline.train", *options, "--name", "alone"]
    subprocess.run(alone, cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=limit(250))
    assert final_checkpoint(run) == final_checkpoint(tmp_path / "runs" / "alone")
