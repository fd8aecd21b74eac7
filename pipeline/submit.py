"""Write an ILSVRC submission: python -m pipeline.submit runs/A runs/B --protocol multi-scale --split test --out test.txt"""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin
from pipeline.command_lines.handover import submit_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin("writing the submission of", "nets")
    answer(submit_options)

from collections.abc import Sequence

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation.cells import errors_cells
from pipeline.evaluation.ensemble import check_members
from pipeline.evaluation.members import chosen_members, dataset_of
from pipeline.evaluation.score_files import read
from pipeline.handover import submission


def main(argv: Sequence[str] | None = None) -> int:
    args = submit_options().parse_args(argv)
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
    command.run(main, kept=True)
