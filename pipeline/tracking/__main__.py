"""The command `python -m pipeline.tracking sync RUN ...`: MLflow brought up to date from run folders."""

from __future__ import annotations

import argparse
import fcntl
from pathlib import Path
from typing import Any

from pipeline import command
from pipeline.command import Progress, UserError, print_json, print_table
from pipeline.tracking.journal import METRICS
from pipeline.tracking.process import FeederProcess, unsent_lines, what_is_left
from pipeline.tracking.state import LOG, read_delivered, read_wanted, resolve_uri, without_password

EXAMPLE = "python -m pipeline.tracking sync runs/resnet50-seed0"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking",
        description=f"Sends MLflow what it does not have yet of finished or interrupted runs. Example: {EXAMPLE}",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser(
        "sync", help="send MLflow what it does not have yet", description=f"{parser.description}"
    )
    sync.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    sync.add_argument(
        "--uri", help="MLflow's server or store; default: the run's own, MLFLOW_TRACKING_URI, or mlflow.db beside it"
    )
    sync.add_argument("--seconds", type=float, default=600.0, help="give up after so long per run (%(default)g)")
    sync.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    for folder in options.runs:
        if read_wanted(folder) is None:
            raise UserError(f"{folder} is not the folder of a tracked run: give one like runs/resnet50-seed0")
    results = [_sync(folder, options.seconds, options.uri) for folder in options.runs]
    rows = [(one["run"], one["sent"], one["left"], one["mlflow_run"]) for one in results]
    print_table("MLflow", ("run", f"lines of {METRICS} sent", "left", "MLflow run"), rows)
    if options.json:
        print_json({"runs": results})
    if left := " ".join(filter(None, (what_is_left(folder, options.uri) for folder in options.runs))):
        raise UserError(left)
    return 0


def _sync(folder: Path, seconds: float, uri: str | None) -> dict[str, Any]:
    if _is_fed(folder):
        raise UserError(f"{folder} is feeding MLflow itself just now: wait for the run's end")
    wanted = read_wanted(folder)
    assert wanted is not None
    place = without_password(uri or resolve_uri(folder, wanted.uri))
    before = left = unsent_lines(folder, read_delivered(folder, place))
    feeder = FeederProcess(folder, seconds, uri)
    with Progress(before, folder.name, "lines", enabled=before > 0) as progress:

        def waiting() -> None:
            nonlocal left
            now = unsent_lines(folder, read_delivered(folder, place))
            progress.advance(left - now)
            left = now

        feeder.drain(seconds, waiting)
        waiting()
    return {"run": folder.name, "sent": before - left, "left": left, "mlflow_run": read_delivered(folder, place).run_id}


def _is_fed(folder: Path) -> bool:
    try:
        with open(folder / LOG) as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no log yet, or a file system without locks
        return False
    return False


if __name__ == "__main__":
    command.run(main)
