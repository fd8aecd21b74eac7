"""Make a table or figure of the paper: python -m pipeline.experiment table6

Trains missing runs, resumes interrupted runs, reuses finished runs; then makes the tests that the rows need.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper.command_lines import experiment_options, split_words
from paper.evidence import RunResult
from paper.launching import Settings, check_surroundings, split_options, text_of, training
from paper.names import names
from paper.reading import find
from paper.rows import RowResult, collect
from paper.runner import Step, Stopped, Submitted, plan, run_here, submit
from paper.spec import Experiment
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_PREEMPTED, EXIT_USER_ERROR
from pipeline.base.stopping import going_on, say
from pipeline.base.tables import print_json, print_table
from pipeline.data.dataset import MANIFEST
from pipeline.data.storage import open_dataset
from pipeline.models.architecture import parse_arch

EXIT_INCOMPLETE = 1  # nothing failed, but a row has no figures: the tested split has no labels
FIGURES = {  # of the closing table
    "train_error": "train error %",
    "top1_error": "top-1 error %",
    "top5_error": "top-5 error %",
    "top1_mean": "mean",
    "top1_std": "std",
    "response_std": "mean response std",
}


def main(argv: Sequence[str] | None = None) -> int:
    words, behind = split_words(sys.argv[1:] if argv is None else argv)
    args = experiment_options().parse_args(words)
    if args.list or args.name is None:
        return show_list(args.json)
    experiment = find(args.name)
    experiment = experiment.only(args.only) if args.only else experiment
    settings = read_settings(args, behind)
    steps = plan(experiment, settings)  # refuses a scale that cannot be
    check_surroundings(experiment, settings)
    if args.dry_run:
        return show_plan(experiment, steps, settings, args.json)
    check_data(experiment, settings)
    if settings.launcher == "slurm":
        return submit_all(experiment, settings, args.json)
    try:
        failures, stopped = run_here(experiment, settings), 0
    except Stopped as request:
        failures, stopped = {}, request.code
    results = collect(experiment, settings.data, settings.runs, settings.scale)
    report(experiment, results, failures, settings.scale)
    if args.json:
        print_json({**figures(experiment, results, settings.scale), "failures": failures})
    if stopped:
        say(going_on(saved(results)))
    return exit_code(results, failures, stopped)


def saved(results: Sequence[RowResult]) -> str:
    """What is kept of the runs that are not finished."""
    runs = {run.state.config.run_name: run.state for result in results for run in result.runs}
    begun = [
        f"{name} at iteration {state.iteration:,} of {state.config.iterations:,}"
        for name, state in runs.items()
        if state.kind == "interrupted"
    ]
    return f"saved: {', '.join(begun)}" if begun else "stopped: what is finished is kept"


def read_settings(args: Namespace, behind: Sequence[str]) -> Settings:
    """The options as values. Raises UserError for options that do not go together."""
    if args.procs is not None and args.launcher == "slurm":
        raise UserError(
            "--procs goes with --launcher local or ray: on SLURM put --nodes and --gpus-per-node behind '--'"
        )
    if args.procs is not None and args.procs < 1:
        raise UserError(f"--procs is {args.procs}: give at least 1, with --launcher local or ray")
    surroundings, launcher_options = split_options(behind)
    return Settings(
        launcher=args.launcher,
        data=args.data,
        runs=args.runs,
        scale=args.scale,
        procs=args.procs,
        surroundings=surroundings,
        options=launcher_options,
    )


def check_data(experiment: Experiment, settings: Settings) -> None:
    """Raise UserError where the dataset folder is missing, or lacks the split that the tests read."""
    data = settings.data or experiment.data
    if "://" not in data and not (Path(data) / MANIFEST).is_file():
        family = parse_arch(experiment.runs[0].arch).family
        script = "shard_imagenet.py" if family == "imagenet" else "shard_cifar10.py"
        raise UserError(
            f"{experiment.name} needs a dataset folder and {data} is none: prepare it with "
            f"'python data_prep/{script} SOURCE {data}', or name another with --data"
        )
    open_dataset(data).split(experiment.split)


def show_list(as_json: bool) -> int:
    """`--list`: the experiments and how many runs each needs."""
    experiments = [find(name) for name in names()]
    rows = [(each.name, len(each.rows), len(each.runs), each.place, each.title) for each in experiments]
    print_table("experiments", ("name", "rows", "runs", "in the paper", "what it shows"), rows)
    together = len({spec for experiment in experiments for spec in experiment.runs})
    print(f"{together} runs in all: a run that several experiments need is one run.")
    if as_json:
        keys = ("name", "rows", "runs", "place", "title")
        print_json({"experiments": [dict(zip(keys, row, strict=True)) for row in rows], "runs": together})
    return 0


def show_plan(experiment: Experiment, steps: Sequence[Step], settings: Settings, as_json: bool) -> int:
    """`--dry-run`: every run, its state, what would be done for it, and the command that would train it."""
    for step in steps:
        if step.trains:
            print(f"$ {text_of(training(step.spec, settings))}")
    rows = [(step.state.config.run_name, step.state.text, step.words) for step in steps]
    print_table(_title(experiment, settings.scale), ("run", "state", "what would be done"), rows)
    if "://" not in (data := settings.data or experiment.data) and not Path(data).is_dir():
        print(f"There is no dataset folder {data} yet.")
    print("Nothing was started.")
    if as_json:
        keys = ("run", "state", "action")
        print_json({"experiment": experiment.name, "runs": [dict(zip(keys, row, strict=True)) for row in rows]})
    return 0


def submit_all(experiment: Experiment, settings: Settings, as_json: bool) -> int:
    """`--launcher slurm`: submit, then print the jobs and the rows as they are now."""
    jobs = submit(experiment, settings)
    print_table("submitted", Submitted._fields, jobs)
    results = collect(experiment, settings.data, settings.runs, settings.scale)
    report(experiment, results, {}, settings.scale)
    if jobs:
        print("The same command shows the jobs' progress, and submits failed jobs again.")
    if as_json:
        submitted = [job._asdict() for job in jobs]
        print_json({**figures(experiment, results, settings.scale), "submitted": submitted})
    return EXIT_USER_ERROR if any(_conflicting(result) for result in results) else 0


def report(experiment: Experiment, results: Sequence[RowResult], failures: dict[str, int], scale: float) -> None:
    """Print every row: its figures beside the paper's where it is complete, and its state."""
    measured = {key for result in results for run in result.runs for key in (*run.figures, *result.figures)}
    known = [key for key in FIGURES if key in measured]
    paper = [key for key in known if any(key in result.row.paper for result in results)]
    rows: list[tuple[str, ...]] = []
    for result in results:
        figures, papers = _cells(result.figures, known), _cells(result.row.paper, paper)
        rows.append((result.row.label, *figures, *papers, result.state))
        for run in result.runs if len(result.runs) > 1 else ():
            rows.append((f"  {run.state.config.run_name}", *_cells(run.figures, known), *[""] * len(paper), run.text))
    columns = ("row", *(FIGURES[key] for key in known), *(f"paper {FIGURES[key]}" for key in paper), "state")
    print_table(_title(experiment, scale), columns, rows)
    notes = [experiment.note, *(f"{result.row.label}: {result.row.note}" for result in results if result.row.note)]
    print("".join(f"{note}\n" for note in notes if note), end="")
    for name, code in failures.items():
        print(f"error: {name} ended with exit code {code}: see its message above", file=sys.stderr)


def _title(experiment: Experiment, scale: float) -> str:
    rehearsal = "" if scale == 1 else f" (a rehearsal, every schedule shortened to {scale:g} of its length)"
    return f"{experiment.place}: {experiment.title}{rehearsal}"


def figures(experiment: Experiment, results: Sequence[RowResult], scale: float) -> dict[str, Any]:
    """The closing table as plain values."""
    rows = [
        {
            "label": result.row.label,
            "state": result.state,
            "figures": result.figures,
            "paper": dict(result.row.paper),
            "note": result.row.note,
            "runs": [_run_figures(run) for run in result.runs],
        }
        for result in results
    ]
    return {"experiment": experiment.name, "place": experiment.place, "scale": scale, "rows": rows}


def _run_figures(run: RunResult) -> dict[str, Any]:
    state = run.state
    return {
        "name": state.config.run_name,
        "folder": str(state.folder),
        "state": state.kind,
        "iteration": state.iteration,
        "iterations": state.config.iterations,
        "differences": list(state.differences),
        "missing": list(run.missing),
        "figures": run.figures,
        "source": None if run.source is None else str(run.source),
    }


def exit_code(results: Sequence[RowResult], failures: dict[str, int], stopped: int) -> int:
    """0 where every row has its figures; else a code that says why not."""
    if stopped or failures:
        return stopped or next(iter(failures.values()))
    if any(_conflicting(result) for result in results):
        return EXIT_USER_ERROR
    if any(run.state.kind == "running" for result in results for run in result.runs):
        return EXIT_PREEMPTED  # another process trains the run: give the same command again later
    return 0 if all(result.complete for result in results) else EXIT_INCOMPLETE


def _conflicting(result: RowResult) -> bool:
    return any(run.state.kind == "conflicting" for run in result.runs)


def _cells(values: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [f"{values[key]:.2f}" if key in values else "-" for key in keys]
