"""Rewrite trajectory.json, where what a run computes was changed on purpose or something was added: make golden"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.base import command
from pipeline.base.parsing import CommandParser
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table
from pipeline.run.config import TRAJECTORY
from tests.digits import write_dataset
from tests.golden.record import FILE, rewrite
from tests.golden.runs import RECIPES, run_name, small_run
from tests.golden.values import CASES, Made
from tests.helpers import ROOT
from tests.patience import set_patience


def run(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "Computes again what a run computes and writes it to tests/golden/trajectory.json; refuses where that has changed and "
        "TRAJECTORY in pipeline/run/config.py was not raised.",
        "python -m tests.golden",
    )
    parser.add_json_option()
    own = parser.parse_args(argv)
    set_patience()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        news = rewrite(FILE, TRAJECTORY, everything(Path(folder)))
    print_table(
        f"{FILE.relative_to(ROOT)}, trajectory {TRAJECTORY}", ("what is new",), [(one,) for one in news or ["nothing"]]
    )
    if own.json:
        print_json({"trajectory": TRAJECTORY, "new": news})
    return 0


def everything(folder: Path) -> dict[str, Made]:
    """All cases; the runs' digits are made in `folder`."""
    dataset = write_dataset(folder)
    made = {}
    with Progress(len(CASES) + len(RECIPES), "golden values", "cases") as progress:
        for name, compute in CASES.items():
            made[name] = compute()
            progress.advance()
        for number, recipe in enumerate(RECIPES):
            made[run_name(recipe)] = small_run(recipe, dataset, folder / f"runs-{number}")
            progress.advance()
    return made


if __name__ == "__main__":
    command.run(run)
