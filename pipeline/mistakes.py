"""Show what a net gets wrong: python -m pipeline.mistakes runs/NAME

Errors per class, the confusions and the most confident mistakes as a picture, from a score file and the dataset's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.base.layout import CONFIG, MISTAKES
from pipeline.data.dataset import Dataset
from pipeline.evaluation.members import dataset_of, find_members, read_members, shared_protocols
from pipeline.evaluation.options import add_runs_option, add_weights_option, protocol_names
from pipeline.evaluation.scores import Scores
from pipeline.handover.mistakes import (
    class_errors,
    class_names,
    confident_mistakes,
    confusions,
    write_sheet,
    write_tables,
)  # fmt: skip
from pipeline.run.options import load
from pipeline.tracking import log_evaluations

EXAMPLE = "python -m pipeline.mistakes runs/resnet50-seed0 --protocol ten-crop"
ROWS = 10  # of the tables on the terminal; the files hold all


def options() -> CommandParser:
    made = CommandParser("Shows what a net gets wrong: errors per class, confusions, confident mistakes.", EXAMPLE)
    made.add_argument("target", metavar="RUN|SCORES", help="a run folder, a score file or an MLflow run id")
    made.add_argument("--protocol", metavar="NAME", help="of the run's score files (default: the first it has)")
    made.add_argument("--split", default="val", help="of the run's score files (default val)")
    add_weights_option(made, "of the run's score files")
    made.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the run's)")
    made.add_argument("--pictures", type=int, default=24, metavar="N", help="mistakes on the sheet (default 24)")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="default: beside the score file")
    add_runs_option(made)
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    if own.pictures < 1:
        raise UserError(f"--pictures {own.pictures} cannot be: give at least 1")
    members = find_members([own.target], runs=own.runs, split=own.split, weights=own.weights)
    protocol = shared_protocols(members, protocol_names([own.protocol]) if own.protocol else [])[0]
    (file,) = read_members(members, protocol)
    scores, dataset = file.scores, dataset_of(members, own.data)
    if not scores.labelled:
        raise UserError(f"{file.path} is of a split without labels: there is nothing to call a mistake")
    if dataset.sha256 != scores.provenance.dataset_sha256:
        raise UserError(
            f"the scores are not of the dataset {dataset.folder}: give with --data the one they were made on"
        )
    folder = own.out or file.path.with_suffix(MISTAKES)
    names, split = class_names(dataset), dataset.split(scores.provenance.split)
    paths = write_tables(folder, scores, names)
    paths.append(write_sheet(folder / "mistakes.png", confident_mistakes(scores, own.pictures), split, names))
    run = members[0].run
    if run is not None:
        where = f"mistakes/{file.path.stem}"
        log_evaluations(run, load(run / CONFIG).tracking, 0, {}, artifacts=[(path, where) for path in paths])
    report(scores, dataset, folder, own.json)
    return 0


def report(scores: Scores, dataset: Dataset, folder: Path, as_json: bool) -> None:
    """Print the worst classes and the most frequent confusions."""
    names = class_names(dataset)
    worst, pairs = class_errors(scores)[:ROWS], confusions(scores)[:ROWS]
    rows = [(names[one.label], one.images, 100 * one.top1_wrong / one.images, one.top5_wrong) for one in worst]
    print(f"Tables of all classes and confusions and the picture sheet: {folder}")
    cells = [(name, n, f"{top1:.2f}", f"{100 * top5 / n:.2f}") for name, n, top1, top5 in rows]
    print_table("The worst classes", ("class", "images", "top-1 error %", "top-5 error %"), cells)
    table = [(names[one.true], names[one.predicted], one.count) for one in pairs]
    print_table("The most frequent confusions", ("class", "taken for", "images"), table)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "worst_classes": [{"class": row[0], "images": row[1], "top1_error": row[2]} for row in rows],
                "confusions": [{"class": row[0], "taken_for": row[1], "images": row[2]} for row in table],
            }
        )


if __name__ == "__main__":
    command.run(main)
