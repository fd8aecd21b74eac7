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
from paper.state import read_state
from pipeline import evaluate, train
from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.lease import Lease, is_held
from pipeline.data.dataset import Dataset
from pipeline.process.world import World
from pipeline.run import folder as run_folder
from pipeline.run.config import TRAJECTORY, Config, to_yaml
from pipeline.run.folder import open_run, read_facts
from pipeline.run.options import load
from tests.helpers import ROOT
from tests.pipeline.small_runs import ITERATIONS, refusal, train_rank, weights
from tests.ranks import ALONE, run_ranks

OTHER = TRAJECTORY + 1
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def finished(undisturbed: Config, tmp_path: Path) -> Config:
    """A copy of the reference that may be spoilt."""
    config = replace(undisturbed, runs=str(tmp_path / "runs"))
    shutil.copytree(undisturbed.run_folder, config.run_folder)
    return config


@pytest.fixture
def unfinished(finished: Config) -> Config:
    """The same without its last ten iterations, trained by COMMIT: whether this machine has git makes no difference."""
    last_checkpoint(finished).unlink()
    note_commit(finished, COMMIT)
    return finished


def last_checkpoint(config: Config) -> Path:
    (last,) = (config.run_folder / "checkpoints").glob(f"{ITERATIONS:08d}-*.pt")
    return last


def note_commit(config: Config, commit: str) -> None:
    facts = facts_of(config)
    facts["attempts"][-1]["git_commit"] = commit
    note(config, facts)


def note(config: Config, facts: object) -> None:
    (config.run_folder / "run.json").write_text(json.dumps(facts))


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


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        (COMMIT, f"it was last trained by commit {COMMIT}): check out that commit to continue it, or"),
        (
            f"{COMMIT}-dirty",
            f"it was last trained by commit {COMMIT} with uncommitted changes): "
            "check out that commit and make the same changes to continue it, or",
        ),
        (
            "unknown",
            "it was last trained by a commit that is not recorded): use the code that it was started with to continue it, or",
        ),
    ],
)
def test_other_code_is_refused(
    unfinished: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    commit: str,
    told: str,
) -> None:
    """With one sentence that names both numbers, the code to go on with and the remedy; nothing is written."""
    note_commit(unfinished, commit)
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    before = contents(unfinished.run_folder)
    assert code_of(unfinished, train.main, tmp_path) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "computes something else" in said
    assert f"the run's {TRAJECTORY} -> this code's {OTHER}" in said
    assert f"{told} choose another --name" in said
    assert contents(unfinished.run_folder) == before


@pytest.mark.costly("each of two ranks imports this module, and with it a launcher and the evaluation")
def test_every_rank_is_refused_by_other_code(unfinished: Config) -> None:
    sentences = run_ranks(2, refused_by_code_of, OTHER, unfinished)
    assert f"this code's {OTHER}" in sentences[0] and sentences[0] == sentences[1]


def test_runs_from_before_the_number_are_of_number_1(
    unfinished: Config, undisturbed: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on, to the weights of the run that was not interrupted, and code of another number refuses them."""
    facts = facts_of(unfinished)
    del facts["trajectory"]
    note(unfinished, facts)
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
    assert code_of(finished, train.main, tmp_path) == 0
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
    note(config, {"dataset_sha256": "0" * 64, "trajectory": OTHER, "attempts": [{"git_commit": "earlier"}]})
    with open_run(config, Dataset(digits), ALONE, threads=1):
        facts = facts_of(config)
    assert (facts["dataset_sha256"], facts["trajectory"]) == (Dataset(digits).sha256, TRAJECTORY)
    assert [one["git_commit"] == "earlier" for one in facts["attempts"]] == [True, False]


def test_checkpoints_without_config_yaml_are_refused(
    unfinished: Config, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing says of which values they are: not even the same values go on. Nothing is written; the file's copy mends it."""
    file = unfinished.run_folder / "config.yaml"
    kept = file.read_bytes()
    file.unlink()
    before = contents(unfinished.run_folder)
    for config in (unfinished, replace(unfinished, seed=9)):
        assert code_of(config, train.main, tmp_path) == EXIT_USER_ERROR
        said = capsys.readouterr().err
        assert said.startswith(f"error: {file} is missing") and said.count("\n") == 1
        assert "put the run's config.yaml back" in said and "choose another --name" in said
        assert read_state(config).kind == "conflicting" and f"{file} is missing" in read_state(config).text
    assert contents(unfinished.run_folder) == before
    file.write_bytes(kept)
    with open_run(unfinished, Dataset(digits), ALONE, threads=1) as (facts, _):
        assert len(facts["attempts"]) == 2


def just_before_the_lease(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """`change` happens between the first look at a run folder and the moment in which its lease is taken."""

    class Late(Lease):
        def __init__(self, folder: Path) -> None:
            change()
            super().__init__(folder)

    monkeypatch.setattr(run_folder, "Lease", Late)


def test_a_run_of_other_code_that_loses_its_end_meanwhile_is_refused(
    finished: Config, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    just_before_the_lease(monkeypatch, last_checkpoint(finished).unlink)
    record = (finished.run_folder / "run.json").read_bytes()
    with (
        pytest.raises(UserError, match="computes something else"),
        open_run(finished, Dataset(digits), ALONE, threads=1),
    ):
        pass
    assert (finished.run_folder / "run.json").read_bytes() == record
    assert not is_held(finished.run_folder)


def test_a_run_of_other_values_that_begins_meanwhile_is_refused(
    undisturbed: Config, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(undisturbed, runs=str(tmp_path))
    theirs = replace(mine, seed=9)

    def begin() -> None:
        monkeypatch.undo()
        with open_run(theirs, Dataset(digits), ALONE, threads=1):
            pass

    just_before_the_lease(monkeypatch, begin)
    with pytest.raises(UserError, match="seed: 9 -> 0"), open_run(mine, Dataset(digits), ALONE, threads=1):
        pass
    assert load(mine.run_folder / "config.yaml") == theirs and len(facts_of(mine)["attempts"]) == 1


DAMAGE: dict[str, object] = {
    "not an object": [3],
    "attempts are an object": {"attempts": {"0": {}}},
    "attempts are numbers": {"attempts": [3]},
    "attempts are a string": {"attempts": "[]"},
    "attempts are null": {"attempts": None},
    "commit is null": {"attempts": [{"git_commit": None}]},
    "dataset is a number": {"dataset_sha256": 5},
    "dataset is null": {"dataset_sha256": None},
    "trajectory is a string": {"trajectory": "1"},
    "trajectory is null": {"trajectory": None},
    "trajectory is true": {"trajectory": True},
    "trajectory is a fraction": {"trajectory": 1.0},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_in_run_json_is_said(unfinished: Config, digits: Path, damage: object) -> None:
    """By a training, an experiment and whatever else reads it; nothing is written."""
    note(unfinished, {**facts_of(unfinished), **damage} if isinstance(damage, dict) else damage)
    before = contents(unfinished.run_folder)
    for read in (
        lambda: read_facts(unfinished.run_folder),
        lambda: open_run(unfinished, Dataset(digits), ALONE, threads=1).__enter__(),
    ):
        with pytest.raises(UserError, match=r"run\.json is damaged \(it is not what a run wrote\): put its copy back"):
            read()
    state = read_state(unfinished)
    assert state.kind == "conflicting" and "run.json is damaged" in state.text
    assert contents(unfinished.run_folder) == before


def test_run_json_of_earlier_versions_is_read() -> None:
    """The records of trainings that this repository keeps, from before the number was written."""
    files = sorted((ROOT / "docs" / "results" / "runs").glob("*/run.json"))
    assert files
    for file in files:
        assert read_facts(file.parent) == json.loads(file.read_text())


def test_experiments_know_it(unfinished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicting, so that it is neither queued nor trained; one that is running is left to the process that has it."""
    assert read_state(unfinished).kind == "interrupted"
    monkeypatch.setattr(run_folder, "TRAJECTORY", OTHER)
    state = read_state(unfinished)
    assert state.kind == "conflicting"
    assert f"the run's {TRAJECTORY} -> this code's {OTHER}" in state.text
    assert COMMIT in state.text
    lease = Lease(unfinished.run_folder, {})
    assert read_state(unfinished).kind == "running"
    lease.release()


def stand_in_for_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts an sbatch on PATH that notes each of its calls as a line of the file that this returns."""
    commands, queue = tmp_path / "bin", tmp_path / "queue"
    commands.mkdir()
    (commands / "sbatch").write_text(f"#!/bin/sh\necho job >>{queue}\necho Submitted batch job 77\n")
    for name in ("srun", "scontrol"):
        (commands / name).write_text("#!/bin/sh\n")
    for one in commands.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    return queue


ONE_NODE = ("--nodes", "1", "--gpus-per-node", "0", "--tasks-per-node", "1", "--assume-shared")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["submitted", "dry run"])
def test_no_job_is_queued_only_to_be_refused(
    unfinished: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry: tuple[str, ...],
) -> None:
    """launch/slurm.py refuses before sbatch hears of it, for other values, code or data; a dry run refuses the same."""
    queue = stand_in_for_slurm(tmp_path, monkeypatch)
    arguments = [*ONE_NODE, *dry]
    before = contents(unfinished.run_folder)
    assert code_of(unfinished, slurm.main, tmp_path, *arguments, "--seed", "9") == EXIT_USER_ERROR
    printed = capsys.readouterr()
    assert "seed: 0 -> 9" in printed.err and printed.out == ""
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "TRAJECTORY", OTHER)
        assert code_of(unfinished, slurm.main, tmp_path, *arguments) == EXIT_USER_ERROR
    printed = capsys.readouterr()
    assert f"this code's {OTHER}" in printed.err and printed.out == ""
    assert not queue.exists() and contents(unfinished.run_folder) == before
    assert code_of(unfinished, slurm.main, tmp_path, *arguments) == 0
    assert queue.exists() != bool(dry)
    facts = facts_of(unfinished)
    note(unfinished, {**facts, "dataset_sha256": "0" * 64})
    assert code_of(unfinished, slurm.main, tmp_path, *arguments) == EXIT_USER_ERROR
    assert "the dataset's content: 000000000000 -> " in capsys.readouterr().err


def test_a_dry_run_needs_no_dataset(
    unfinished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its folder is elsewhere, or a URL, values and code alone are compared."""
    for data in (str(tmp_path / "elsewhere"), "s3://nowhere/digits"):
        away = replace(unfinished, data=data)
        assert code_of(away, slurm.main, tmp_path, *ONE_NODE, "--dry-run") == 0
        assert "Nothing was submitted" in capsys.readouterr().out
        assert code_of(away, slurm.main, tmp_path, *ONE_NODE, "--dry-run", "--seed", "9") == EXIT_USER_ERROR
        assert "seed: 0 -> 9" in capsys.readouterr().err
        with monkeypatch.context() as patched:
            patched.setattr(run_folder, "TRAJECTORY", OTHER)
            assert code_of(away, slurm.main, tmp_path, *ONE_NODE, "--dry-run") == EXIT_USER_ERROR
        assert f"this code's {OTHER}" in capsys.readouterr().err
