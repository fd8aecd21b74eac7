"""Put the paper's tables and figures beside our runs, on one page: python -m pipeline.report --out report.html

Reads run folders; trains nothing and changes nothing in them. Every number is read anew: a deleted run is 'not run'.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from paper.cards import cards_of
from paper.command_lines import report_options
from paper.names import names
from paper.others import Others, find_others, holds_run
from paper.page import Page, render
from paper.panels import error_figure, response_figure
from paper.plain import of_others, of_sections
from paper.reading import find
from paper.records import keep_records
from paper.rows import evaluate
from paper.run_figure import curves_of
from paper.section import Section
from paper.spec import Experiment, RunSpec
from paper.state import RunState, find_state, scales_of
from pipeline.base.command import UserError
from pipeline.base.files import check_room, write_text
from pipeline.base.layout import CONFIG
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation.figures import standalone
from pipeline.run.folder import git_commit
from pipeline.run.options import load
from pipeline.tracking import TrackingConfig, log_result_run

RESULT_RUN = "report"  # the folder, beside the run folders, of the page's MLflow run


def main(argv: Sequence[str] | None = None) -> int:
    args = report_options().parse_args(argv)
    check_runs(args.runs)
    wanted = [name for text in args.experiments or names() for name in text.split(",") if name]
    experiments = [find(name) for name in dict.fromkeys(wanted)]
    check_room(args.out)
    sections = read_sections(experiments, args.runs)
    others = read_others(experiments, sections, args.runs)
    cards = cards_of((row for section in sections for row in section.rows), others.runs)
    if args.records:
        places = keep_records([card.folder for card in cards if card.recorded], args.records)
        cards = [replace(card, place=places.get(card.folder, card.place)) for card in cards]
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    page = Page(
        sections=sections,
        others=others,
        cards=cards,
        warnings=warnings_of(experiments, args.runs),
        origin=f"Made {moment} from {', '.join(map(str, args.runs))} by commit {git_commit()[:10]}",
    )
    write_text(args.out, render(page, args.out))
    if not args.no_tracking:
        track(page, args)
    report(page, args)
    return 0


def read_sections(experiments: Sequence[Experiment], runs: Sequence[Path]) -> list[Section]:
    """A section for each experiment and scale of which there are runs, in the page's order."""
    sections: list[Section] = []
    state_of = cache(partial(find_state, runs))  # experiments share runs: each run's state is read once
    with Progress(len(experiments), "reading runs", "experiments") as progress:
        for experiment in experiments:
            sections += [section_of(experiment, state_of, scale) for scale in scales_of(experiment, runs)]
            progress.advance()
    return sorted(sections, key=reading_order)


def read_others(experiments: Sequence[Experiment], sections: Sequence[Section], runs: Sequence[Path]) -> Others:
    """The runs that no section shows. A conflicting one is among them: it is a run, though not the experiment's."""
    states = [state for section in sections for state in section.states]
    shown = {state.folder for state in states if state.kind not in ("not run", "conflicting")}
    folders = sum(1 for folder in runs for path in folder.iterdir() if path not in shown and holds_run(path))
    with Progress(folders, "reading other runs", "runs", enabled=folders > 0) as progress:
        return find_others(runs, experiments, shown, RESULT_RUN, progress.advance)


def check_runs(folders: Sequence[Path]) -> None:
    """Raise UserError unless these are folders that hold run folders."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: give with --runs the folder that holds the run folders")
        if (folder / CONFIG).is_file():
            raise UserError(f"{folder} is a run folder itself: give with --runs the folder that holds it")
    if not any(any(folder.glob(f"*/{CONFIG}")) for folder in folders):
        raise UserError(
            f"{' and '.join(map(str, folders))} holds no run (no NAME/{CONFIG}): "
            "train one first, with python -m pipeline.experiment or a launcher of launch/"
        )


def section_of(experiment: Experiment, state_of: Callable[[RunSpec, float], RunState], scale: float) -> Section:
    """One experiment at one scale as the run folders show it now; of a rehearsal, only the rows that have a run."""
    rows = tuple(evaluate(experiment, lambda spec: state_of(spec, scale)))
    if scale != 1:
        rows = tuple(row for row in rows if any(run.state.kind != "not run" for run in row.runs))
    figure = None
    if experiment.measure == "curve":
        figure = error_figure(experiment, rows, scale)
    elif experiment.measure == "responses":
        figure = response_figure(rows)
    return Section(experiment=experiment, scale=scale, rows=rows, figure=figure)


def reading_order(section: Section) -> tuple[bool, bool]:
    """For sorting: experiments with a run first, and tables before figures; else the order on the command line."""
    return not section.started, section.figure is not None


def warnings_of(experiments: Sequence[Experiment], runs: Sequence[Path]) -> list[str]:
    """A sentence for each folder that has the name of a run but no config: it counts as not run."""
    known = {spec.name() for experiment in experiments for spec in experiment.runs}
    return [
        f"{path} has no {CONFIG}: it is no run folder, and its run counts as not run"
        for folder in runs
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.split("-scale")[0] in known and not (path / CONFIG).is_file()
    ]


def track(page: Page, args: Namespace) -> None:
    """Keep the page and its figures as artifacts of an MLflow run that is theirs alone."""
    folder: Path = args.runs[0] / RESULT_RUN
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} is the run folder of a training: give --no-tracking, or rename that run")
    folder.mkdir(exist_ok=True)
    files, sections = [args.out], page.sections
    for section in sections:
        if section.figure is not None and section.figure.panels:
            title = f"{section.experiment.place}. {section.experiment.title}"
            path = folder / f"{section.anchor}.svg"
            write_text(path, standalone(section.figure.panels, title, section.anchor.replace(".", "-")))
            files.append(path)
    for number, figure in enumerate(filter(None, map(curves_of, page.others.groups)), start=1):
        path = folder / f"other-runs-{number}.svg"
        write_text(path, standalone(figure.panels, "Other runs", f"other-runs-{number}"))
        files.append(path)
    log_result_run(
        folder,
        tracking_of(args.runs),
        name=RESULT_RUN,
        kind="report",
        params={"experiments": ",".join(section.anchor for section in sections)},
        metrics={"report": {section.anchor: float(section.finished) for section in sections}},
        tags={"arch": "report"},
        artifacts=files,
    )


def tracking_of(runs: Sequence[Path]) -> TrackingConfig:
    """The tracking section of the first run whose config can be read."""
    for config in sorted(path for folder in runs for path in folder.glob(f"*/{CONFIG}")):
        with suppress(UserError):
            return load(config).tracking
    return TrackingConfig()


def report(page: Page, args: Namespace) -> None:
    """Print how many runs are finished and, with --json, all figures."""
    for sentence in page.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    sections, others = page.sections, page.others
    rows = [(one.anchor, one.experiment.place, f"{one.finished} of {one.runs}") for one in sections if one.started]
    if others.runs:
        rows.append(("other runs", "-", f"{others.finished} of {len(others.runs)}"))
    if rows:
        print_table(f"Written: {args.out}", ("experiment", "in the paper", "runs finished"), rows)
    else:
        print(f"Written: {args.out}")
    if waiting := ", ".join(section.anchor for section in sections if not section.started):
        print(f"Nothing has been run of: {waiting}.")
    for sentence in others.sentences:
        print(sentence)
    if args.json:
        experiments, warnings = of_sections(sections), list(page.warnings)
        values = {"experiments": experiments, "other_runs": of_others(others), "warnings": warnings}
        print_json({"report": str(args.out), **values})
