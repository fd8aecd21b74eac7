"""Put the paper's tables and figures beside our runs, on one page: python -m pipeline.report --out report.html

Reads run folders, trains nothing and changes nothing in them. Every number is read anew: a run that was deleted is 'not run'.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from paper.page import RunCard, Section, render
from paper.panels import error_figure, response_figure
from paper.reading import find, names
from paper.records import keep_records
from paper.results import States, scales_of, table_row
from paper.runs import deviations, read_facts
from paper.spec import Experiment
from pipeline.base.command import CommandParser, Progress, UserError, print_json, print_table
from pipeline.base.files import write_text
from pipeline.base.layout import CONFIG
from pipeline.evaluation.figures import standalone
from pipeline.run.folder import git_commit
from pipeline.run.options import load
from pipeline.tracking import TrackingConfig, log_result_run

EXAMPLE = "python -m pipeline.report --runs runs --experiments table6,fig6,fig7 --out report.html"
RESULT_RUN = "report"  # the folder among the run folders that the page's MLflow run is fed from


def options() -> CommandParser:
    made = CommandParser("Writes one page with the paper's tables and figures beside our runs.", EXAMPLE)
    made.add_argument(
        "--runs", type=Path, nargs="+", default=[Path("runs")], help="folders that hold run folders (default runs)"
    )
    made.add_argument(
        "--experiments", nargs="+", metavar="NAME", help=f"of {', '.join(names())}, or YAML files (default: all)"
    )
    made.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default report.html)")
    made.add_argument(
        "--records",
        type=Path,
        metavar="FOLDER",
        help="keep a small record of each run there and link it: config, metrics, hashes of weights and scores",
    )
    made.add_argument("--no-tracking", action="store_true", help="keep no copy of the page in MLflow")
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    check_runs(own.runs)
    wanted = [name for text in own.experiments or names() for name in text.split(",") if name]
    experiments = [find(name) for name in dict.fromkeys(wanted)]
    sections, states = [], States(own.runs)
    with Progress(len(experiments), "reading runs", "experiments") as progress:
        for experiment in experiments:
            for scale in scales_of(experiment, own.runs):
                sections.append(section_of(experiment, states, scale))
            progress.advance()
    sections.sort(key=reading_order)
    cards, warnings = cards_of(sections, states), warnings_of(experiments, own.runs)
    if own.records:
        places = keep_records([card.state.folder for card in cards if card.facts], own.records)
        cards = [replace(card, place=places.get(card.state.folder, card.place)) for card in cards]
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    made = f"Made {moment} from {', '.join(map(str, own.runs))} by commit {git_commit()[:10]}"
    own.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(own.out, render(sections, cards, warnings, made, own.out))
    if not own.no_tracking:
        track(sections, own)
    report(sections, warnings, own)
    return 0


def check_runs(folders: Sequence[Path]) -> None:
    """Raise UserError unless each is a folder that holds run folders."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: give with --runs the one that holds the run folders")
        if (folder / CONFIG).is_file():
            raise UserError(f"{folder} is a run folder itself: give with --runs the folder that holds it")
    if not any(any(folder.glob(f"*/{CONFIG}")) for folder in folders):
        raise UserError(
            f"{' and '.join(map(str, folders))} holds no run (no NAME/{CONFIG}): "
            "train one first, with python -m pipeline.experiment or a launcher of launch/"
        )


def section_of(experiment: Experiment, states: States, scale: float) -> Section:
    """One experiment at one scale as the run folders show it now; of a shortened one the rows that have a run."""
    rows = tuple(table_row(experiment, row, states, scale) for row in experiment.rows)
    if scale != 1:
        rows = tuple(row for row in rows if any(run.state.kind != "not run" for run in row.runs))
    figure = None
    if experiment.measure == "curve":
        figure = error_figure(experiment, rows, scale)
    elif experiment.measure == "responses":
        figure = response_figure(rows)
    return Section(experiment=experiment, scale=scale, rows=rows, figure=figure)


def reading_order(section: Section) -> tuple[bool, bool]:
    """What has been begun before what has not, and tables before figures; else as the experiments are named."""
    return not any(state.kind != "not run" for state in section.states), section.figure is not None


def cards_of(sections: Sequence[Section], states: States) -> list[RunCard]:
    """One card for each run that is there, in the order in which the sections name them."""
    cards: dict[Path, RunCard] = {}
    for run in (run for section in sections for row in section.rows for run in row.runs):
        state, folder = run.state, run.state.folder
        if state.kind == "not run" or folder in cards:
            continue
        sound = state.kind != "conflicting"
        cards[folder] = RunCard(
            name=folder.name,
            state=state,
            place=folder,
            facts=read_facts(folder, state.config.batch) if sound else None,
            deviations=tuple(deviations(state.config, states.recipe(run.spec))) if sound else (),
            recipe=run.spec.config.name,
        )
    return list(cards.values())


def warnings_of(experiments: Sequence[Experiment], runs: Sequence[Path]) -> list[str]:
    """A sentence for each folder that has the name of a run but no config: it counts as not run."""
    known = {spec.name() for experiment in experiments for spec in experiment.runs}
    return [
        f"{path} has no {CONFIG}: it is no run folder, and its run counts as not run"
        for folder in runs
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.split("-scale")[0] in known and not (path / CONFIG).is_file()
    ]


def figures_of(sections: Sequence[Section]) -> dict[str, Any]:
    """The report as plain values, for --json."""
    found = {}
    for section in sections:
        rows = []
        for one in section.rows:
            lines = [{**dataclasses.asdict(line), "difference": line.difference} for line in one.lines]
            runs = [{"run": str(run.state.folder), "state": run.text} for run in one.runs]
            rows.append(
                {"label": one.row.label, "status": one.status, "lines": lines, "notes": one.notes, "runs": runs}
            )
        own = {"place": section.experiment.place, "scale": section.scale, "rows": rows}
        if section.figure is not None:
            own["figure"] = {
                "columns": section.figure.columns,
                "rows": {row.label: row.figures for row in section.figure.rows},
            }
        found[section.anchor] = own
    return found


def track(sections: Sequence[Section], own: Namespace) -> None:
    """Keep the page and its figures as artifacts of an MLflow run of their own, beside the runs."""
    folder: Path = own.runs[0] / RESULT_RUN
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} is the run folder of a training: give --no-tracking, or name that run otherwise")
    folder.mkdir(exist_ok=True)
    files = [own.out]
    for section in sections:
        if section.figure is not None and section.figure.panels:
            title = f"{section.experiment.place}. {section.experiment.title}"
            path = folder / f"{section.anchor}.svg"
            write_text(path, standalone(section.figure.panels, title, section.anchor.replace(".", "-")))
            files.append(path)
    log_result_run(
        folder,
        tracking_of(own.runs),
        name=RESULT_RUN,
        params={"experiments": ",".join(section.anchor for section in sections)},
        metrics={"report": {section.anchor: float(section.finished) for section in sections}},
        tags={"arch": "report"},
        artifacts=files,
    )


def tracking_of(runs: Sequence[Path]) -> TrackingConfig:
    """How the first run whose config can be read is tracked."""
    for config in sorted(path for folder in runs for path in folder.glob(f"*/{CONFIG}")):
        with suppress(UserError):
            return load(config).tracking
    return TrackingConfig()


def report(sections: Sequence[Section], warnings: Sequence[str], own: Namespace) -> None:
    """Print what was found and, on request, everything as JSON."""
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    rows = [(section.anchor, section.experiment.place, f"{section.finished} of {section.runs}") for section in sections]
    print_table(f"Written: {own.out}", ("experiment", "in the paper", "runs finished"), rows)
    if own.json:
        print_json({"report": str(own.out), "experiments": figures_of(sections), "warnings": list(warnings)})
