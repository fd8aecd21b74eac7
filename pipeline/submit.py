"""Write an ILSVRC submission: python -m pipeline.submit runs/A runs/B --protocol multi-scale --split test --out test.txt"""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("writing the submission of", "nets")

from collections.abc import Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import CommandParser, UserError, print_json, print_table
from pipeline.evaluation.ensemble import check_members
from pipeline.evaluation.members import dataset_of
from pipeline.evaluation.options import add_member_options, chosen_members, errors_cells
from pipeline.evaluation.score_files import read
from pipeline.handover import submission

EXAMPLE = "python -m pipeline.submit runs/resnet101-seed0 runs/resnet152-seed0 --protocol multi-scale --out test.txt"


def options() -> CommandParser:
    parser = CommandParser("Writes the ILSVRC submission of a net or an ensemble from its score files.", EXAMPLE)
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="run folders, score files or MLflow run ids")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the submission")
    add_member_options(parser, "default: the one that all members have", split="test")
    parser.add_argument("--data", metavar="DATASET", help="the dataset, a folder or URL (default: the first run's)")
    parser.add_argument("--ground-truth", type=Path, metavar="FILE", help="the development kit's, to check val")
    parser.add_argument("--lines", type=int, metavar="N", help="images of the split, where it is not ILSVRC's whole")
    parser.add_json_option()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = options().parse_args(argv)
    members, names = chosen_members(args, args.members)
    if len(names) > 1:
        raise UserError(f"the members have scores under {', '.join(names)}: say which with --protocol")
    member_names = [member.name for member in members]
    scores = [read(member.files[names[0]]).scores for member in members]
    check_members(scores, member_names)
    provenance = scores[0].provenance
    dataset = dataset_of(members, args.data, provenance.dataset_sha256)
    split = dataset.split(provenance.split)
    submission.check_order(split)
    ids = submission.class_ids(dataset)
    lines = args.lines or submission.LINES.get(provenance.split, len(split))
    written = submission.write(args.out, scores, ids, lines)
    truth = submission.read_ground_truth(args.ground_truth, lines) if args.ground_truth else None
    truth = truth or submission.ground_truth(split, ids)
    top1, top5 = submission.errors(written, truth) if truth else (None, None)
    row = (", ".join(member_names), names[0], f"{lines:,}", *errors_cells(top1, top5), args.out)
    columns = ("net", "protocol", "lines", "top-1 error %", "top-5 error %", "submission")
    print_table(f"submission for {provenance.split}", columns, [row])
    if args.json:
        figures = {"submission": str(args.out), "lines": lines, "top1_error": top1, "top5_error": top5}
        print_json({**figures, "protocol": names[0], "members": member_names})
    return 0


if __name__ == "__main__":
    command.run(main)
