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
from pipeline.base.output import reader_has_gone
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json
from pipeline.handover.answers import STDOUT, Figures, csv_file, table
from pipeline.handover.pictures import pictures_of
from pipeline.handover.prediction import BLOCK, Prediction, Predictor, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 where a picture could not be read, after all others were named."""
    args = predict_options().parse_args(argv)
    check_outputs(args)
    pictures, passed_over = pictures_of(args.pictures)
    if passed_over:
        print(f"passed over: {', '.join(map(str, passed_over))}", file=sys.stderr)
    predictor = open_predictor(args.target, args.weights, args.data, args.device)
    figures = Figures(predictor, listed=args.json and args.csv is None)
    with table(predictor) if args.csv is None else csv_file(args.csv) as report:
        for prediction in named(predictor, pictures, args):
            report(prediction)
            figures.add(prediction)
    if args.csv not in (None, STDOUT):
        print(figures.sentence(args.csv))
    if args.json:
        print_json(figures.of(args.csv))
    return EXIT_USER_ERROR if figures.unreadable else 0


def check_outputs(args: Namespace) -> None:
    """Raise UserError where the answers could not be written, before they are made."""
    if args.csv == STDOUT and args.json:
        raise UserError("--csv - and --json both write to standard output: give --csv a file")
    if args.csv not in (None, STDOUT):
        check_room(Path(args.csv))


def named(predictor: Predictor, pictures: Sequence[Path], args: Namespace) -> Iterator[Prediction]:
    """Each picture's prediction, until nobody reads them; a sentence on standard error for one that cannot be read."""
    streamed = args.csv in (None, STDOUT)
    # Answers on a terminal show themselves how far it is.
    shown = len(pictures) > BLOCK and not (streamed and sys.stdout.isatty())
    with Progress(len(pictures), predictor.trained.arch, "pictures", enabled=shown) as progress:
        for prediction in predictor.predict_all(pictures, args.top):
            if prediction.reason:
                print(f"error: {prediction.name} cannot be read: {prediction.reason}", file=sys.stderr)
            progress.advance()
            yield prediction
            if streamed and progress.done % BLOCK == 0 and reader_has_gone():
                return


if __name__ == "__main__":
    command.run(main)
