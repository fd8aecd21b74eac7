"""Completes an experiment: trains missing runs, resumes interrupted runs, tests, averages.

Nothing that is finished is done again, so that a user may give the same command again after any interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launch import slurm_command, status
from paper.evidence import RunResult, read_result
from paper.launching import STOPPED, Settings, ask, averaging, call, evaluation, text_of, training
from paper.rows import collect
from paper.spec import Experiment, RunSpec, resolve
from paper.state import RunState, read_state
from pipeline.base.layout import ENSEMBLE, EVALUATION, SLURM


@dataclass(frozen=True, kw_only=True)
class Step:
    """The work that one run needs. words: the work, for people. trains: whether to train. lacks: the missing tests."""

    spec: RunSpec
    state: RunState
    words: str
    trains: bool = False
    lacks: tuple[str, ...] = ()


def plan(experiment: Experiment, settings: Settings) -> list[Step]:
    """One step for each run of the experiment, as the run folders show it now."""
    return [_step(experiment, spec, settings) for spec in experiment.runs]


def _step(experiment: Experiment, spec: RunSpec, settings: Settings) -> Step:
    result = _result(experiment, spec, settings)
    tests = _tests(experiment)
    match result.state.kind:
        case "finished":
            words = f"make {', '.join(result.missing)}" if result.missing else "nothing"
            return Step(spec=spec, state=result.state, words=words, lacks=result.missing)
        case "not run" | "interrupted":
            words = ", then ".join(["train" if result.state.kind == "not run" else "go on", *tests])
            return Step(spec=spec, state=result.state, words=words, trains=True, lacks=tests)
        case "running":
            return Step(spec=spec, state=result.state, words="leave it")
        case "conflicting":
            return Step(spec=spec, state=result.state, words="refuse it")


def _result(experiment: Experiment, spec: RunSpec, settings: Settings) -> RunResult:
    config = resolve(spec, settings.data, settings.runs, settings.scale, settings.surroundings)
    return read_result(experiment, spec, read_state(config))


def run_here(experiment: Experiment, settings: Settings) -> dict[str, int]:
    """Train and test one run after the other, on this machine or by Ray; then average.

    Returns the exit code of each command that failed, by the run's name: the other runs are done all the same.
    Raises Stopped where a run was asked to stop.
    """
    failures: dict[str, int] = {}
    for number, spec in enumerate(experiment.runs, start=1):
        step = _step(experiment, spec, settings)
        if not (step.trains or step.lacks):
            continue
        name = step.state.config.run_name
        _say(f"[{number} of {len(experiment.runs)}] {name}, {step.state.text}: {step.words}")
        code = _do(training(spec, settings)) if step.trains else 0
        if not code:
            result = _result(experiment, spec, settings)
            if result.missing:
                code = _do(evaluation(experiment, result.state.config, result.missing, settings.procs))
        if code:
            failures[name] = code
    if experiment.measure == "ensemble":
        failures |= _average(experiment, settings)
    return failures


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """A run was asked to stop and has saved. `code`: its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _do(command: Sequence[str]) -> int:
    _say(f"$ {text_of(command)}")
    if (code := call(command)) in STOPPED:
        raise Stopped(code)
    return code


def ensemble_name(experiment: Experiment, scale: float) -> str:
    """The name of the run folder of an experiment's ensemble."""
    return f"ensemble-{experiment.name}" + ("" if scale == 1 else f"-scale{scale!r}")


def _average(experiment: Experiment, settings: Settings) -> dict[str, int]:
    """Make the ensemble's run folder and MLflow run once all members are tested, and again where their scores are newer."""
    (row,) = collect(experiment, settings.data, settings.runs, settings.scale)
    if not row.complete:
        return {}
    members = [run.state.config for run in row.runs]
    name = ensemble_name(experiment, settings.scale)
    written = Path(members[0].runs) / name / ENSEMBLE
    newest = max(run.source.stat().st_mtime for run in row.runs if run.source is not None)
    fresh = written.exists() and written.stat().st_mtime >= newest
    code = 0 if fresh else _do(averaging(experiment, members, name))
    return {name: code} if code else {}


class Submitted(NamedTuple):
    """A job in SLURM's queue: its id, the run that it works for, and its work."""

    job: str
    run: str
    what: str


def submit(experiment: Experiment, settings: Settings) -> list[Submitted]:
    """Submit the missing work to SLURM: a job for each training, a job after it for its tests, one job for the ensemble.

    Work that is queued or running there already is not submitted again.
    """
    jobs: list[Submitted] = []
    evaluations: list[str] = []
    steps = plan(experiment, settings)
    for step in steps:
        config, after, lacks = step.state.config, [], step.lacks
        if step.state.kind == "conflicting":
            continue
        if active := _active_jobs(config.run_folder):
            after, lacks = active[-1:], _tests(experiment)
            jobs.append(Submitted(job=active[-1], run=config.run_name, what="queued already"))
        elif step.trains:
            after = [str(ask([*training(step.spec, settings), "--json"])["job_id"])]
            jobs.append(Submitted(job=after[0], run=config.run_name, what=step.words.split(",")[0]))
        if lacks:
            folder = config.run_folder / f"{EVALUATION}-{experiment.name}"
            command, name = evaluation(experiment, config, lacks, None), f"{config.run_name}-{experiment.name}"
            evaluations.append(_submit_command(command, name, folder, after, settings))
            jobs.append(Submitted(job=evaluations[-1], run=config.run_name, what=", ".join(lacks)))
    if experiment.measure == "ensemble" and evaluations and all(step.state.kind != "conflicting" for step in steps):
        name, members = ensemble_name(experiment, settings.scale), [step.state.config for step in steps]
        folder = Path(members[0].runs) / name
        job = _submit_command(averaging(experiment, members, name), name, folder, evaluations, settings)
        jobs.append(Submitted(job=job, run=name, what="average"))
    return jobs


def _tests(experiment: Experiment) -> tuple[str, ...]:
    """The tests of a finished run: score files, layer responses, or none where the run's metrics are enough."""
    return ("responses",) if experiment.measure == "responses" else experiment.protocols


def _submit_command(command: Sequence[str], name: str, folder: Path, after: Sequence[str], settings: Settings) -> str:
    """Submit a command as a job that starts after others have ended well; its id, or that of its job in the queue."""
    if active := _active_jobs(folder):
        return active[-1]
    words = [sys.executable, "-m", slurm_command.__name__, "--name", name, "--folder", str(folder / SLURM)]
    words += ["--after", ",".join(after)] if after else []
    return str(ask([*words, *settings.options, "--json", "--", *command])["job_id"])


def _active_jobs(folder: Path) -> list[str]:
    """The jobs of a folder that SLURM still has in its queue or on its nodes."""
    return status.read(folder).active_jobs if (folder / SLURM).is_dir() else []


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
