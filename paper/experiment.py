"""Make a table or figure of the paper: python -m pipeline.experiment table6

Runs that are missing are trained, interrupted ones go on, finished ones are reused; then the tests that the rows need.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.evidence import RowResult, RunResult, collect
from paper.launching import LAUNCHERS, Settings, check_surroundings, split_options, text_of, training
from paper.reading import find, names
from paper.runner import Step, Stopped, plan, run_here, submit
from paper.spec import Experiment
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.base.exits import EXIT_PREEMPTED, EXIT_USER_ERROR
from pipeline.data.dataset import MANIFEST
from pipeline.data.storage import open_dataset
from pipeline.models.architecture import parse_arch

EXAMPLE = "python -m pipeline.experiment table6 --scale 0.05"
EXIT_INCOMPLETE = 1  # nothing failed, and yet a row has no figures: the split that is tested on has no labels
FIGURES = {  # of the closing table
    "train_error": "train error %",
    "top1_error": "top-1 error %",
    "top5_error": "top-5 error %",
    "top1_mean": "mean",
    "top1_std": "std",
    "response_std": "mean response std",
}


def options() -> CommandParser:
    made = CommandParser(
        "Makes a table or figure of the paper: trains what is missing, reuses what is finished, tests it.", EXAMPLE
    )
    made.add_argument("name", nargs="?", help="an experiment, or a YAML file of one's own; without it they are listed")
    made.add_argument("--list", action="store_true", help="list the experiments")
    made.add_argument(
        "--launcher", choices=list(LAUNCHERS), default="local", help="which door of launch/ (default local)"
    )
    made.add_argument(
        "--scale", type=float, default=1.0, metavar="F", help="shorten every schedule to this share, for a rehearsal"
    )
    made.add_argument("--data", metavar="DATASET", help="the dataset folder (default: the config's)")
    made.add_argument("--runs", type=Path, help="the folder that holds the run folders (default: the config's)")
    made.add_argument("--only", action="append", metavar="ROW", help="this row alone; repeat for several")
    made.add_argument(
        "--procs", type=int, metavar="N", help="processes of each run, local or ray (default: the door's)"
    )
    made.add_argument("--dry-run", action="store_true", help="show the runs and what would be done; start nothing")
    made.add_json_option()
    made.epilog = "What stands behind '--' goes to the launcher: ... --launcher slurm -- --nodes 4 --partition gpu"
    return made


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    own = options().parse_args(words[:split])
    if own.list or own.name is None:
        return show_list(own.json)
    experiment = find(own.name)
    experiment = experiment.only(own.only) if own.only else experiment
    settings = read_settings(own, words[split + 1 :])
    steps = plan(experiment, settings)  # refuses a scale that cannot be
    check_surroundings(experiment, settings)
    if own.dry_run:
        return show_plan(experiment, steps, settings, own.json)
    check_data(experiment, settings)
    if settings.launcher == "slurm":
        return submit_all(experiment, settings, own.json)
    try:
        failures, stopped = run_here(experiment, settings), 0
    except Stopped as request:
        failures, stopped = {}, request.code
    results = collect(experiment, settings.data, settings.runs, settings.scale)
    report(experiment, results, failures, settings.scale)
    if own.json:
        print_json({**figures(experiment, results, settings.scale), "failures": failures})
    return exit_code(results, failures, stopped)


def read_settings(own: Namespace, behind: Sequence[str]) -> Settings:
    """The options as values. Raises UserError for what does not go together."""
    if own.procs is not None and (own.procs < 1 or own.launcher == "slurm"):
        raise UserError(
            f"--procs is {own.procs}: give at least 1, with --launcher local or ray"
            if own.launcher != "slurm"
            else "--procs goes with --launcher local or ray: on SLURM put --nodes and --gpus-per-node behind '--'"
        )
    surroundings, launcher_options = split_options(behind)
    return Settings(
        launcher=own.launcher,
        data=own.data,
        runs=own.runs,
        scale=own.scale,
        procs=own.procs,
        surroundings=surroundings,
        options=launcher_options,
    )


def check_data(experiment: Experiment, settings: Settings) -> None:
    """Raise UserError where the dataset folder is missing, or lacks the split that is tested on."""
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
    found = [find(name) for name in names()]
    rows = [(one.name, len(one.rows), len(one.runs), one.place, one.title) for one in found]
    print_table("experiments", ("name", "rows", "runs", "in the paper", "what it shows"), rows)
    together = len({spec for one in found for spec in one.runs})
    print(f"{together} runs in all: a run that several of them want is one run.")
    if as_json:
        keys = ("name", "rows", "runs", "place", "title")
        print_json({"experiments": [dict(zip(keys, row, strict=True)) for row in rows], "runs": together})
    return 0


def show_plan(experiment: Experiment, steps: Sequence[Step], settings: Settings, as_json: bool) -> int:
    """`--dry-run`: every run, its state, what would be done, and with which command it would be trained."""
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
    """`--launcher slurm`: the jobs, and where the rows stand now."""
    jobs = submit(experiment, settings)
    print_table("submitted", ("job", "run", "what"), [(one.job, one.run, one.what) for one in jobs])
    results = collect(experiment, settings.data, settings.runs, settings.scale)
    report(experiment, results, {}, settings.scale)
    if jobs:
        print("The same command shows how they are doing, and submits what has failed again.")
    if as_json:
        submitted = [{"job": one.job, "run": one.run, "what": one.what} for one in jobs]
        print_json({**figures(experiment, results, settings.scale), "submitted": submitted})
    return EXIT_USER_ERROR if any(_conflicting(one) for one in results) else 0


def report(experiment: Experiment, results: Sequence[RowResult], failures: dict[str, int], scale: float) -> None:
    """Print every row: its figures beside the paper's where it is complete, else how far it is."""
    measured = {
        key for one in results for figures in (one.figures, *(run.figures for run in one.runs)) for key in figures
    }
    known = [key for key in FIGURES if key in measured]
    paper = [key for key in known if any(key in one.row.paper for one in results)]
    rows: list[tuple[str, ...]] = []
    for one in results:
        rows.append((one.row.label, *_cells(one.figures, known), *_cells(one.row.paper, paper), one.text))
        if len(one.runs) > 1:
            blank = [""] * len(paper)
            rows += [
                (f"  {run.state.config.run_name}", *_cells(run.figures, known), *blank, run.text) for run in one.runs
            ]
    columns = ("row", *(FIGURES[key] for key in known), *(f"paper {FIGURES[key]}" for key in paper), "state")
    print_table(_title(experiment, scale), columns, rows)
    notes = [experiment.note, *(f"{one.row.label}: {one.row.note}" for one in results if one.row.note)]
    print("".join(f"{note}\n" for note in notes if note), end="")
    for name, code in failures.items():
        print(f"error: {name} ended with exit code {code}; its own words stand above", file=sys.stderr)


def _title(experiment: Experiment, scale: float) -> str:
    rehearsal = "" if scale == 1 else f" (a rehearsal, every schedule shortened to {scale:g} of its length)"
    return f"{experiment.place}: {experiment.title}{rehearsal}"


def figures(experiment: Experiment, results: Sequence[RowResult], scale: float) -> dict[str, Any]:
    """The closing table as plain values."""
    rows = [
        {
            "label": one.row.label,
            "state": one.text,
            "figures": one.figures,
            "paper": dict(one.row.paper),
            "note": one.row.note,
            "runs": [_run_figures(run) for run in one.runs],
        }
        for one in results
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
    """0 where every row has its figures; else the reason that a script can act on."""
    if stopped or failures:
        return stopped or next(iter(failures.values()))
    if any(_conflicting(one) for one in results):
        return EXIT_USER_ERROR
    if any(run.state.kind == "running" for one in results for run in one.runs):
        return EXIT_PREEMPTED  # another process is training it: give the same command again
    return 0 if all(one.complete for one in results) else EXIT_INCOMPLETE


def _conflicting(result: RowResult) -> bool:
    return any(run.state.kind == "conflicting" for run in result.runs)


def _cells(values: Any, keys: Sequence[str]) -> list[str]:
    return [f"{values[key]:.2f}" if key in values else "-" for key in keys]
