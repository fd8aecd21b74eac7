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
from pipeline.base.exits import EXIT_USER_ERROR
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table
from pipeline.handover.prediction import BLOCK, Prediction, Predictor, open_predictor, pictures_in


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 where a picture could not be read, after all others were named."""
    args = predict_options().parse_args(argv)
    pictures = [picture for place in args.pictures for picture in pictures_in(place)]
    predictor = open_predictor(args.target, args.weights, args.data, args.device)
    found = list(named(predictor, pictures))
    print_result(predictor, [one for one in found if one.scores is not None], args)
    return EXIT_USER_ERROR if any(one.scores is None for one in found) else 0


def named(predictor: Predictor, pictures: Sequence[Path]) -> Iterator[Prediction]:
    """Each picture's prediction; a sentence on standard error for one that cannot be read."""
    with Progress(len(pictures), predictor.trained.arch, "pictures", enabled=len(pictures) > BLOCK) as progress:
        for prediction in predictor.predict(pictures):
            if prediction.scores is None:
                print(f"error: {prediction.picture} cannot be read: {prediction.reason}", file=sys.stderr)
            progress.advance()
            yield prediction


def print_result(predictor: Predictor, predictions: Sequence[Prediction], args: Namespace) -> None:
    """Print the table and, with --json, the figures."""
    trained, classes, wnids = predictor.trained, predictor.classes, predictor.data.wnids
    rows: list[tuple[object, ...]] = []
    figures = []
    for prediction in predictions:
        best = prediction.top(args.top)
        names = [str(prediction.picture), *[""] * len(best)]
        rows += [
            (name, classes[label], f"{100 * score:.2f}") for name, (label, score) in zip(names, best, strict=False)
        ]
        answers = [{"label": k, "wnid": wnids[k], "class": classes[k], "score": score} for k, score in best]
        figures.append({"picture": str(prediction.picture), "classes": answers})
    if rows:
        title = f"{trained.arch} ({trained.checkpoint.name}), {len(classes):,} classes of {predictor.data.name}"
        print_table(title, ("picture", "class", "score %"), rows)
    if args.json:
        print_json({"net": trained.name, "arch": trained.arch, "pictures": figures})


if __name__ == "__main__":
    command.run(main)
