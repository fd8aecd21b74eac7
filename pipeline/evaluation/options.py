"""What the command lines of the evaluation commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.evaluation.members import Member, find_members, shared_protocols
from pipeline.evaluation.nets import STATE_KEYS
from pipeline.evaluation.protocols import PROTOCOLS, find


def add_weights_option(parser: argparse.ArgumentParser, help: str = "which of the checkpoint's weights") -> None:
    """`--weights`: final, or another of a checkpoint's sets."""
    parser.add_argument("--weights", choices=list(STATE_KEYS), default="final", help=help)


def add_member_options(parser: argparse.ArgumentParser, protocol: str, split: str = "val") -> None:
    """What chooses the score files of members. protocol: help text; split: the default."""
    parser.add_argument("--protocol", action="append", metavar="NAME", help=protocol)
    parser.add_argument("--split", default=split, help=f"of the score files (default {split})")
    add_weights_option(parser, "of the score files")
    help = "where MLflow run ids are looked up (default runs)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), help=help)


def chosen_members(args: argparse.Namespace, texts: Sequence[str]) -> tuple[list[Member], list[str]]:
    """The members that `texts` name, and their protocols: those of `--protocol`, else all that they share."""
    members = find_members(texts, runs=args.runs, split=args.split, weights=args.weights)
    return members, shared_protocols(members, protocol_names(args.protocol) if args.protocol else [])


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def protocol_names(texts: Sequence[str]) -> list[str]:
    """The protocols that repeated options and comma lists name: in that order, each once. Raises UserError."""
    names = [name for text in texts for name in text.split(",") if name]
    for name in names:
        find(name)
    if not names:
        raise UserError(f"no protocol was named: give --protocol with {', '.join(PROTOCOLS)}")
    return list(dict.fromkeys(names))


def errors_cells(top1: float | None, top5: float | None) -> tuple[str, str]:
    """Top-1 and top-5 error as table cells; a dash where the split has no labels."""
    first, second = ("-" if error is None else f"{error:.2f}" for error in (top1, top5))
    return first, second


def rate_cell(images_per_second: float | None) -> str:
    return "-" if images_per_second is None else f"{images_per_second:,.1f}"
