"""The command lines of this package.

Imports nothing that takes seconds, so that --help and mistyped options are answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from paper.names import Launcher, names
from pipeline.base.parsing import CommandParser


def experiment_options() -> CommandParser:
    """What `python -m pipeline.experiment` takes."""
    parser = CommandParser(
        "Makes a table or figure of the paper: trains what is missing, reuses what is finished, tests it.",
        "python -m pipeline.experiment table6 --scale 0.05",
    )
    text = "an experiment, or a YAML file of yours; without a name the experiments are listed"
    parser.add_argument("name", nargs="?", help=text)
    parser.add_argument("--list", action="store_true", help="list the experiments")
    text = "the launcher that trains (default local)"
    parser.add_argument("--launcher", choices=get_args(Launcher), default="local", help=text)
    text = "shorten every schedule to this share, for a rehearsal"
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help=text)
    parser.add_argument("--data", metavar="DATASET", help="the dataset folder (default: the config's)")
    parser.add_argument("--runs", type=Path, help="the folder that holds the run folders (default: the config's)")
    parser.add_argument("--only", action="append", metavar="ROW", help="this row alone; repeat for several")
    text = "processes of each run, with local or ray (default: the launcher's)"
    parser.add_argument("--procs", type=int, metavar="N", help=text)
    parser.add_argument("--dry-run", action="store_true", help="show the work that each run needs; start nothing")
    parser.add_json_option()
    parser.epilog = "Words behind '--' go to the launcher: ... --launcher slurm -- --nodes 4 --partition gpu"
    return parser


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first `--`, which are the experiment's, and those behind it, which are the launcher's."""
    at = words.index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def report_options() -> CommandParser:
    """What `python -m pipeline.report` takes."""
    parser = CommandParser(
        "Writes one page with the paper's tables and figures beside our runs.",
        "python -m pipeline.report --runs runs --experiments table6,fig6,fig7 --out report.html",
    )
    text = "folders that hold run folders (default runs)"
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], help=text)
    text = f"of {', '.join(names())}, or YAML files (default: all)"
    parser.add_argument("--experiments", nargs="+", metavar="NAME", help=text)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default report.html)")
    text = "keep a small record of each run there and link to it: config, metrics, hashes of weights and scores"
    parser.add_argument("--records", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--no-tracking", action="store_true", help="keep no copy of the page in MLflow")
    parser.add_json_option()
    return parser


def curves_options() -> CommandParser:
    """What `python -m pipeline.curves` takes."""
    parser = CommandParser(
        "Draws training error (thin) and val error (bold) of runs in one figure, and compares the runs.",
        "python -m pipeline.curves runs/resnet20-seed0 runs/resnet56-seed0 --out curves.svg",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, each compared with the first")
    parser.add_argument("--out", type=Path, default=Path("curves.svg"), help="the SVG file (default curves.svg)")
    parser.add_argument("--until", type=int, metavar="N", help="leave out everything after iteration N")
    parser.add_argument("--title", default="Training and val error", help="the figure's title")
    parser.add_json_option()
    return parser
