"""The command `python -m pipeline.tracking`: open shows runs in MLflow, sync sends it what it lacks, export makes files."""

from __future__ import annotations

from pipeline.base.starting import begin

if __name__ == "__main__":  # before the imports below, which take longer
    begin("")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.layout import FEEDER_LOG, METRICS
from pipeline.base.lock import is_locked
from pipeline.base.parsing import CommandParser
from pipeline.base.progress import Progress
from pipeline.base.redaction import holds_secret
from pipeline.base.tables import print_json, print_table
from pipeline.tracking.exporting import FORMATS, export_metrics
from pipeline.tracking.opening import in_order, open_runs
from pipeline.tracking.process import FeederProcess, unsent_lines, what_is_left
from pipeline.tracking.state import Delivered, Wanted
from pipeline.tracking.store import store_of

OPEN_EXAMPLE = "python -m pipeline.tracking open runs"
SYNC_EXAMPLE = "python -m pipeline.tracking sync runs/resnet50-seed0"
EXPORT_EXAMPLE = "python -m pipeline.tracking export runs/resnet50-seed0 --format tensorboard"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.command == "export":
        return _export(args)
    return open_runs(args.runs, args.port, browser=args.browser) if args.command == "open" else _sync_all(args)


def _parser() -> CommandParser:
    parser = CommandParser(
        "Shows runs in MLflow, sends MLflow what it lacks, or makes files of their metrics.",
        OPEN_EXAMPLE,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="open|sync|export")
    text = "Opens MLflow on the runs of a folder, for this machine alone."
    show = commands.add_parser("open", help=text, sentence=text, example=OPEN_EXAMPLE)
    help = "the folder that holds the run folders (default: %(default)s)"
    show.add_argument("runs", nargs="?", default=Path("runs"), type=Path, metavar="RUNS", help=help)
    show.add_argument("--port", type=int, default=5000, help="the port of http://127.0.0.1 (%(default)s)")
    text = "only print the page's address; it is opened where there is a display, from a terminal"
    show.add_argument("--no-browser", dest="browser", action="store_false", help=text)
    text = "Sends MLflow what it lacks of runs that have ended."
    sync = commands.add_parser("sync", help=text, sentence=text, example=SYNC_EXAMPLE)
    sync.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    text = "MLflow's server or store; default: the run's own, MLFLOW_TRACKING_URI, or mlflow.db beside it"
    sync.add_argument("--uri", help=text)
    sync.add_argument("--seconds", type=float, default=600.0, help="time limit per run, in seconds (%(default)g)")
    sync.add_json_option()
    text = "Writes the metrics of runs as one CSV table, or as TensorBoard's event files."
    export = commands.add_parser("export", help=text, sentence=text, example=EXPORT_EXAMPLE)
    export.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("--format", choices=list(FORMATS), default="csv", help="of what is written (%(default)s)")
    help = "what is made goes into this folder (default: %(default)s)"
    export.add_argument("--out", type=Path, default=Path("exported"), metavar="FOLDER", help=help)
    export.add_json_option()
    return parser


def _export(args: argparse.Namespace) -> int:
    made, values = export_metrics(args.runs, args.out, args.format)
    print_table(f"{args.format} in {made}", ("run", "values"), [(name, f"{count:,}") for name, count in values.items()])
    if args.json:
        print_json({"made": str(made), "values": values})
    return 0


def _sync_all(args: argparse.Namespace) -> int:
    for folder in args.runs:
        if Wanted.read(folder) is None:
            raise UserError(f"{folder} is not the folder of a tracked run: give one like runs/resnet50-seed0")
    if args.uri and holds_secret(args.uri):
        print(
            "warning: others on this machine can read the password in --uri while this command runs: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead, or MLFLOW_TRACKING_URI",
            file=sys.stderr,
        )
    results = [_sync(folder, args.seconds, args.uri) for folder in in_order(args.runs)]
    rows = [(result["run"], result["sent"], result["left"], result["mlflow_run"]) for result in results]
    print_table("MLflow", ("run", f"lines of {METRICS} sent", "left", "MLflow run"), rows)
    if args.json:
        print_json({"runs": results})
    if left := " ".join(filter(None, (what_is_left(folder, args.uri) for folder in args.runs))):
        raise UserError(left)
    return 0


def _sync(folder: Path, seconds: float, uri: str | None) -> dict[str, Any]:
    if is_locked(folder / FEEDER_LOG):
        raise UserError(f"the run in {folder} is feeding MLflow right now: wait for its end")
    wanted = Wanted.read(folder)
    assert wanted is not None
    place = store_of(folder, uri or wanted.uri).name
    before = left = unsent_lines(folder, Delivered.read(folder, place))
    feeder = FeederProcess(folder, seconds, uri)
    with Progress(before, folder.name, "lines", enabled=before > 0) as progress:

        def waiting() -> None:
            nonlocal left
            now = unsent_lines(folder, Delivered.read(folder, place))
            progress.advance(left - now)
            left = now

        feeder.drain(seconds, waiting)
        waiting()
    return {"run": folder.name, "sent": before - left, "left": left, "mlflow_run": Delivered.read(folder, place).run_id}


if __name__ == "__main__":
    command.run(main, command.KEEPS, kept=True)
