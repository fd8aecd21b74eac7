"""Code that computes something else (another TRAJECTORY) goes on with no run that has begun; finished runs stay results."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch import slurm
from pipeline import command, evaluate, run_folder, train
from pipeline.command import EXIT_USER_ERROR
from pipeline.config import TRAJECTORY, Config, to_yaml
from pipeline.data.dataset import Dataset
from pipeline.experiments.state import read_state
from pipeline.lease import Lease
from pipeline.run_folder import open_run
from pipeline.world import World
from tests.pipeline.small_runs import ITERATIONS, refusal, train_rank, weights
from tests.ranks import run_ranks

OTHER = TRAJECTORY + 1
ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))


@pytest.fixture
def finished(undisturbed: Config, tmp_path: Path) -> Config:
    """A copy of the reference that may be spoilt."""
    config = replace(undisturbed, runs=str(tmp_path / "runs"))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    return config


@pytest.fixture
def unfinished(finished: Config) -> Config:
    """The same without its last ten iterations."""
    (last,) = (finished.run_folder / "checkpoints").glob(f"{ITERATIONS:08d}-*.pt")
    last.unlink()
    return finished


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the run's; not of those that say which process has it and what that does."""
    present = (".lock", ".lease", "rank-0.json")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in present]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def code_of(config: Config, main: Callable[[list[str]], int], tmp_path: Path, *arguments: str) -> int | str | None:
    """The exit code of a command that reads `config` from a file, in this process."""
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        command.run(lambda: main(["--config", str(file), *arguments]))
    torch.set_num_threads(threads)
    return stopped.value.code


def facts_of(config: Config) -> dict:
    return json.loads((config.run_folder / "run.json").read_text())


def refused_by_code_of(world: World, number: int, config: Config) -> str:
    run_folder.TRAJECTORY = number
    return refusal(world, config)


def test_a_run_is_stamped_when_it_begins(undisturbed: Config) -> None:
    assert facts_of(undisturbed)["trajectory"] == TRAJECTORY


def test_other_code_is_refused(
    unfinished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one sentence that names both numbers, the commit to go on with and the remedy; nothing is written."""
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    before = contents(unfinished.run_folder)
    assert code_of(unfinished, train.run, tmp_path) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "computes something else" in said
    assert f"the run's {TRAJECTORY} -> this code's {OTHER}" in said
    assert facts_of(unfinished)["attempts"][-1]["git_commit"] in said and "choose another --name" in said
    assert contents(unfinished.run_folder) == before


def test_every_rank_is_refused_by_other_code(unfinished: Config) -> None:
    sentences = run_ranks(2, refused_by_code_of, OTHER, unfinished)
    assert f"this code's {OTHER}" in sentences[0] and sentences[0] == sentences[1]


def test_runs_from_before_the_number_are_of_number_1(
    unfinished: Config, undisturbed: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on, to the weights of the run that was not interrupted, and code of another number refuses them."""
    facts = facts_of(unfinished)
    del facts["trajectory"]
    (unfinished.run_folder / "run.json").write_text(json.dumps(facts))
    (sentence,) = run_ranks(1, refused_by_code_of, 2, unfinished)
    assert "the run's 1 -> this code's 2" in sentence
    if TRAJECTORY == 1:
        assert run_ranks(1, train_rank, unfinished) == [0]
        assert weights(unfinished) == weights(undisturbed)


def test_finished_runs_of_other_code_stay_results(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command says that the run was finished and leaves its record alone; it is evaluated as before."""
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    before = contents(finished.run_folder)
    assert code_of(finished, train.run, tmp_path) == 0
    assert "was finished already" in capsys.readouterr().out
    assert contents(finished.run_folder) == before
    assert read_state(finished).kind == "finished"
    command_line = [str(finished.run_folder), "--protocol", "center", "--threads", str(torch.get_num_threads())]
    assert evaluate.main(command_line) == 0
    assert list((finished.run_folder / "scores").glob("center-*.npz"))


def test_an_attempt_that_came_no_further_than_run_json_began_nothing(
    digits: Path, tmp_path: Path, undisturbed: Config
) -> None:
    """Where config.yaml is missing the run begins now, with this code and these data, whatever an earlier attempt noted."""
    config = replace(undisturbed, runs=str(tmp_path))
    config.run_folder.mkdir()
    noted = {"dataset_sha256": "0" * 64, "trajectory": OTHER, "attempts": [{"git_commit": "earlier"}]}
    (config.run_folder / "run.json").write_text(json.dumps(noted))
    with open_run(config, Dataset(digits), ALONE, threads=1):
        facts = facts_of(config)
    assert (facts["dataset_sha256"], facts["trajectory"]) == (Dataset(digits).sha256, TRAJECTORY)
    assert [one["git_commit"] == "earlier" for one in facts["attempts"]] == [True, False]


def test_experiments_know_it(unfinished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicting, so that it is neither queued nor trained; one that is running is left to the process that has it."""
    assert read_state(unfinished).kind == "interrupted"
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    state = read_state(unfinished)
    assert state.kind == "conflicting"
    assert f"the run's {TRAJECTORY} -> this code's {OTHER}" in state.text
    assert facts_of(unfinished)["attempts"][-1]["git_commit"] in state.text
    lease = Lease(unfinished.run_folder, {})
    assert read_state(unfinished).kind == "running"
    lease.release()


def test_no_job_is_queued_only_to_be_refused(
    unfinished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """launch/slurm.py refuses before sbatch (a stand-in that notes its call) hears of it; so it does for other values."""
    commands, queue = tmp_path / "bin", tmp_path / "queue"
    commands.mkdir()
    (commands / "sbatch").write_text(f"#!/bin/sh\necho job >>{queue}\necho Submitted batch job 77\n")
    for name in ("srun", "scontrol"):
        (commands / name).write_text("#!/bin/sh\n")
    for one in commands.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    arguments = ["--nodes", "1", "--gpus-per-node", "0", "--tasks-per-node", "1", "--assume-shared"]
    before = contents(unfinished.run_folder)
    assert code_of(unfinished, slurm.run, tmp_path, *arguments, "--seed", "9") == EXIT_USER_ERROR
    assert "seed: 0 -> 9" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "TRAJECTORY", OTHER)
        assert code_of(unfinished, slurm.run, tmp_path, *arguments) == EXIT_USER_ERROR
    assert f"this code's {OTHER}" in capsys.readouterr().err
    assert not queue.exists() and contents(unfinished.run_folder) == before
    assert code_of(unfinished, slurm.run, tmp_path, *arguments) == 0
    assert queue.read_text() == "job\n"
