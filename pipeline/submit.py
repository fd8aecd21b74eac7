"""Write an ILSVRC submission: python -m pipeline.submit runs/A runs/B --protocol multi-scale --split test --out test.txt"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.evaluation.ensemble import check_members
from pipeline.evaluation.members import dataset_of, find_members, read_members, shared_protocols
from pipeline.evaluation.options import add_runs_option, add_weights_option, errors_cells, protocol_names
from pipeline.handover import submission

EXAMPLE = "python -m pipeline.submit runs/resnet101-seed0 runs/resnet152-seed0 --protocol multi-scale --out test.txt"


def options() -> CommandParser:
    made = CommandParser("Writes the ILSVRC submission of a net or an ensemble from its score files.", EXAMPLE)
    made.add_argument("members", nargs="+", metavar="MEMBER", help="run folders, score files or MLflow run ids")
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="the submission")
    made.add_argument("--protocol", metavar="NAME", help="default: the one that all members have")
    made.add_argument(
        "--split", default="test", help="of the score files: test (default), or val to check by its labels"
    )
    add_weights_option(made, "of the runs' score files")
    made.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the first run's)")
    made.add_argument("--ground-truth", type=Path, metavar="FILE", help="the development kit's, for val")
    made.add_argument("--lines", type=int, metavar="N", help="images of the split, where it is not ILSVRC's whole one")
    add_runs_option(made)
    made.add_json_option()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    own = options().parse_args(argv)
    members = find_members(own.members, runs=own.runs, split=own.split, weights=own.weights)
    names = shared_protocols(members, protocol_names([own.protocol]) if own.protocol else [])
    if len(names) > 1:
        raise UserError(f"the members have scores under {', '.join(names)}: say which with --protocol")
    scores = [one.scores for one in read_members(members, names[0])]
    check_members(scores, [one.name for one in members])
    provenance = scores[0].provenance
    dataset = dataset_of(members, own.data)
    if dataset.sha256 != provenance.dataset_sha256:
        raise UserError(
            f"the scores are not of the dataset {dataset.folder}: give with --data the one they were made on"
        )
    split = dataset.split(provenance.split)
    submission.check_order(split)
    ids = submission.class_ids(dataset)
    lines = own.lines or submission.LINES.get(provenance.split, len(split))
    submission.write(own.out, scores, ids, lines)

    truth = submission.read_ground_truth(own.ground_truth, lines) if own.ground_truth else None
    truth = truth or submission.ground_truth(split, ids)
    # From the file itself: what was written is scored, not what was meant to be written.
    written = submission.read(own.out, lines, set(ids.tolist()))
    top1, top5 = submission.errors(written, truth) if truth else (None, None)
    row = (", ".join(one.name for one in members), names[0], f"{lines:,}", *errors_cells(top1, top5), own.out)
    columns = ("net", "protocol", "lines", "top-1 error %", "top-5 error %", "submission")
    print_table(f"submission for {provenance.split}", columns, [row])
    if own.json:
        figures = {"submission": str(own.out), "lines": lines, "top1_error": top1, "top5_error": top5}
        print_json({**figures, "protocol": names[0], "members": [one.name for one in members]})
    return 0


if __name__ == "__main__":
    command.run(main)
