"""Name what pictures show: python -m pipeline.predict runs/NAME picture.jpg ..."""

from __future__ import annotations

from pipeline.base.parsing import answer
from pipeline.base.starting import begin, targets, with_targets
from pipeline.command_lines.handover import predict_options

if __name__ == "__main__":  # before the imports below, which take seconds
    begin(
        lambda words: (
            with_targets(f"asking {words[0]} about", words[1:], "pictures") if targets(words) else "asking a net"
        )
    )
    answer(predict_options)

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.files import check_room
from pipeline.base.output import reader_has_gone, shown
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json
from pipeline.handover.answers import STDOUT, Figures, check_csv, csv_file, table
from pipeline.handover.pictures import pictures_of
from pipeline.handover.prediction import BLOCK, Prediction, Predictor, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 where a picture could not be read, after all others were named."""
    args = predict_options().parse_args(argv)
    check_not_twice(args)
    pictures, passed_over = pictures_of(args.pictures)
    if passed_over:
        print(f"passed over: {', '.join(map(str, passed_over))}", file=sys.stderr)
    file = None if args.csv in (None, STDOUT) else Path(args.csv)
    if file is not None:
        check_csv(file, pictures)
    predictor = open_predictor(args.target, args.weights, args.data, args.device)
    if file is not None:
        check_room(file)  # which makes its folders, so after all that may be refused
    figures = Figures(predictor, listed=args.json and args.csv is None)
    with table(predictor) if args.csv is None else csv_file(args.csv) as report:
        for prediction in named(predictor, pictures, args):
            report(prediction)
            figures.add(prediction)
    if file is not None:
        print(figures.sentence(args.csv))
    if args.json:
        print_json(figures.of(args.csv))
    return EXIT_USER_ERROR if figures.unreadable else 0


def check_not_twice(args: Namespace) -> None:
    """Raise UserError where standard output would hold two things."""
    if args.csv == STDOUT and args.json:
        raise UserError("--csv - and --json both write to standard output: give --csv a file")


def named(predictor: Predictor, pictures: Sequence[Path], args: Namespace) -> Iterator[Prediction]:
    """Each picture's prediction, until nobody reads them; a sentence on standard error for one that cannot be read."""
    streamed = args.csv in (None, STDOUT)
    # Answers on a terminal show themselves how far it is.
    with_bar = len(pictures) > BLOCK and not (streamed and sys.stdout.isatty())
    with Progress(len(pictures), predictor.trained.arch, "pictures", enabled=with_bar) as progress:
        for prediction in predictor.predict_all(pictures, args.top):
            if prediction.reason:
                print(f"error: {shown(prediction.name)} cannot be read: {shown(prediction.reason)}", file=sys.stderr)
            progress.advance()
            yield prediction
            if streamed and progress.done % BLOCK == 0 and reader_has_gone():
                return


if __name__ == "__main__":
    command.run(main)
