"""Compares fine-tuning with training from scratch, at equal updates: the demo's net on half of the digits' classes.

A net is trained on the digits 0 to 4; nets for the digits 5 to 9 start from it, or at random. All of them make the same number
of updates of the same mini-batches, with the same schedule. The val errors are those with recomputed BN statistics (section
3.4 of the paper); of frozen statistics, those of the weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics as averages
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data_prep.digits import write_digits  # noqa: E402
from pipeline.base.command import UserError, run  # noqa: E402
from pipeline.base.json_text import parse_json  # noqa: E402
from pipeline.base.layout import METRICS  # noqa: E402
from pipeline.base.progress import Progress  # noqa: E402
from pipeline.base.tables import print_json, print_table  # noqa: E402
from pipeline.loop.progress import RECOMPUTED_BN, WEIGHTS  # noqa: E402

FIRST, SECOND = "01234", "56789"  # the digits that the net knows, and those that it is to learn
WAYS: dict[str, Sequence[str] | None] = {  # options beside --init; None: at random
    "from scratch": None,
    "fine-tuned": (),
    "body at 0.1 of the rate": ("--optimizer.body_lr_factor=0.1",),
    "frozen BN": ("--freeze_bn=true",),
    "body at 0.1, frozen BN": ("--optimizer.body_lr_factor=0.1", "--freeze_bn=true"),
    "classifier alone": ("--optimizer.body_lr_factor=0", "--freeze_bn=true"),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python bench/fine_tuning.py\n  python bench/fine_tuning.py --seeds 1 --updates 50",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="0, 1 ... (default 3 of them)")
    parser.add_argument("--arch", default="resnet8", help="default resnet8")
    parser.add_argument("--pretraining", type=int, default=400, help="updates on the digits 0 to 4 (default 400)")
    parser.add_argument("--updates", type=int, nargs="+", default=[20, 100], help="on the others (default 20 100)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="default: all")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-fine-tuning-") as folder:
        errors = measure(Path(folder), options)
    rows = [(way, *(_cell(errors[way][updates]) for updates in options.updates)) for way in options.ways]
    columns = [f"{updates} updates" for updates in options.updates]
    title = f"val top-1 error % on the digits 5 to 9: {options.arch}, mean of {options.seeds} seeds (lowest to highest)"
    print_table(title, ("", *columns), rows)
    if options.json:
        print_json({"errors": errors, "pretraining": options.pretraining, "load": os.getloadavg()[0]})


def _cell(errors: Sequence[float]) -> str:
    return f"{averages.mean(errors):.1f} ({min(errors):.1f} to {max(errors):.1f})"


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[int, list[float]]]:
    """The val errors, percent, by way and number of updates: one a seed."""
    first, second = (dataset(folder, digits) for digits in (FIRST, SECOND))
    errors: dict[str, dict[int, list[float]]] = {
        way: {updates: [] for updates in options.updates} for way in options.ways
    }
    with Progress(options.seeds * (1 + len(options.ways) * len(options.updates)), "trainings", "trainings") as progress:
        for seed in range(options.seeds):
            common = [f"--arch={options.arch}", f"--seed={seed}"]
            known = train(folder, f"known-{seed}", first, options.pretraining, common)
            progress.advance()
            for way in options.ways:
                for updates in options.updates:
                    own = WAYS[way]
                    words = [] if own is None else [f"--init={known}", *own]
                    made = train(
                        folder,
                        f"{way.replace(' ', '-').replace(',', '')}-{updates}-{seed}",
                        second,
                        updates,
                        [*common, *words],
                    )
                    errors[way][updates].append(val_error(made))
                    progress.advance()
    return errors


def dataset(folder: Path, digits: str) -> Path:
    """The dataset folder of these digits."""
    images, own, made = folder / "images", folder / f"images-{digits}", folder / f"dataset-{digits}"
    write_digits(images)
    for split in ("train", "val"):
        for digit in digits:
            shutil.copytree(images / split / digit, own / split / digit)
    sizes = ["--statistics-size", "32", "--statistics-short-side", "36", "--workers", "1"]
    _call(["data_prep/shard_imagenet.py", str(own), str(made), "--name", f"digits-{digits}", *sizes])
    return made


def train(folder: Path, name: str, data: Path, updates: int, words: Sequence[str]) -> Path:
    """The folder of a run of the demo's recipe, whose schedule is as long as `updates`."""
    steps = f"[{updates * 3 // 4},{updates * 9 // 10}]"
    recipe = [f"--iterations={updates}", f"--schedule.steps={steps}", f"--evaluation.every={updates}"]
    place = [f"--data={data}", f"--runs={folder / 'runs'}", f"--name={name}", "--tracking.mlflow=false"]
    rest = [f"--checkpoint.every={updates}", f"--tracking.log_every={updates}", "--device=cpu"]
    _call(["launch/local.py", "--config=configs/demo.yaml", "--procs=1", *recipe, *place, *rest, *words])
    return folder / "runs" / name


def val_error(made: Path) -> float:
    """The last val error of a run, percent: with recomputed BN statistics, where it has them."""
    lines = [parse_json(line) for line in (made / METRICS).read_text(encoding="utf-8").splitlines()]
    found = {line["kind"]: float(line["top1_error"]) for line in lines}
    return found.get(RECOMPUTED_BN, found[WEIGHTS])


def _call(words: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    run(main)
