"""Show what a model gets wrong: python -m pipeline.mistakes runs/NAME

Errors per class, the confusions and the most confident mistakes as a picture, from a score file and the dataset's images.
"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.handover import mistakes_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("reading the mistakes of", "a net")
    answer(mistakes_options)

from collections.abc import Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.layout import CONFIG, MISTAKES
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation.members import chosen_members, dataset_of
from pipeline.evaluation.score_files import read
from pipeline.evaluation.scores import Scores
from pipeline.handover import mistakes
from pipeline.run.options import load
from pipeline.tracking import log_evaluations

ROWS = 10  # of the tables on the terminal; the files hold all


def main(argv: Sequence[str] | None = None) -> int:
    args = mistakes_options().parse_args(argv)
    if args.pictures < 1:
        raise UserError(f"--pictures must be at least 1 (got {args.pictures})")
    members, protocols = chosen_members(args, [args.target])
    file = read(members[0].files[protocols[0]])
    scores = file.scores
    if not scores.labelled:
        raise UserError(f"{file.path} is of a split without labels: there is nothing to call a mistake")
    dataset = dataset_of(members, args.data, scores.provenance.dataset_sha256)
    folder = args.out or file.path.with_suffix(MISTAKES)
    names, split = dataset.class_names, dataset.split(scores.provenance.split)
    paths = mistakes.write_tables(folder, scores, names)
    pictures = mistakes.confident_mistakes(scores, args.pictures)
    paths.append(mistakes.write_sheet(folder / "mistakes.png", pictures, split, names))
    run = members[0].run
    if run is not None:
        where = f"mistakes/{file.path.stem}"
        log_evaluations(run, load(run / CONFIG).tracking, 0, {}, artifacts=[(path, where) for path in paths])
    print_result(scores, names, folder, args.json)
    return 0


def print_result(scores: Scores, names: Sequence[str], folder: Path, as_json: bool) -> None:
    """Print the worst classes and the most frequent confusions."""
    rows = [
        (names[row.label], row.images, 100 * row.top1_wrong / row.images, 100 * row.top5_wrong / row.images)
        for row in mistakes.class_errors(scores)[:ROWS]
    ]
    print(f"Tables of all classes and confusions and the picture sheet: {folder}")
    cells = [(name, images, f"{top1:.2f}", f"{top5:.2f}") for name, images, top1, top5 in rows]
    print_table("The worst classes", ("class", "images", "top-1 error %", "top-5 error %"), cells)
    pairs = mistakes.confusions(scores)[:ROWS]
    table = [(names[pair.true], names[pair.predicted], pair.count) for pair in pairs]
    print_table("The most frequent confusions", ("class", "taken for", "images"), table)
    if as_json:
        worst = [{"class": row[0], "images": row[1], "top1_error": row[2]} for row in rows]
        taken = [{"class": row[0], "taken_for": row[1], "images": row[2]} for row in table]
        print_json({"folder": str(folder), "worst_classes": worst, "confusions": taken})


if __name__ == "__main__":
    command.run(main, kept=True)
