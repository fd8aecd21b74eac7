"""The command: python -m bench.gpu (what it does, its files and its calls: bench/gpu/__init__.py)."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bench.gpu
from bench.gpu import rates, report
from bench.gpu.folders import CIFAR10, SAMPLES
from bench.gpu.registry import STAGES, Stage
from bench.gpu.runner import Runner
from pipeline.base.command import UserError, check_known, run
from pipeline.base.parsing import CommandParser
from pipeline.base.tables import print_json
from pipeline.process import gpus

ROOT = Path(__file__).parents[2]
EXIT_TERMINATED = 128 + signal.SIGTERM  # as shells report it


def parser() -> CommandParser:
    assert bench.gpu.__doc__
    made = CommandParser(
        bench.gpu.__doc__.splitlines()[0] + "\n\nstages, with their most seconds:\n" + _stages(),
        "python -m bench.gpu --out build/gpu --stages step,ranks --budget 330\n"
        "  python -m bench.gpu --out build/gpu --dry-run",
    )
    made.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of results (default build/gpu)")
    made.add_argument("--stages", metavar="NAMES", help="with commas between them; default: all, in their order")
    made.add_argument("--budget", type=float, default=3600, help="seconds for all of them (default 3600)")
    made.add_argument("--dry-run", action="store_true", help="on a CPU, tiny sizes: whether the check itself holds")
    made.add_argument(
        "--work", type=Path, help="folder for what stages make; default: in the folder of temporary files"
    )
    made.add_argument("--images", type=Path, help="tar of the sample images (imagenet-samples.tar)")
    made.add_argument(
        "--cifar10", type=Path, help="dataset folder of data_prep/shard_cifar10.py, for full_cifar and table6"
    )
    made.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: tables of these results.jsonl, in --out",
    )
    made.add_json_option()
    return made


def _stages() -> str:
    return "\n".join(f"  {stage.name:<12} {stage.seconds:>4.0f}  {stage.about}" for stage in STAGES)


def chosen(names: str | None) -> list[Stage]:
    """Return the stages of these names. Raises UserError for an unknown one."""
    stages = {stage.name: stage for stage in STAGES}
    wanted = names.split(",") if names else list(stages)
    for name in wanted:
        check_known("stage", name, stages)
    return [stages[name] for name in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    out = options.out.resolve()
    if options.report:
        out.mkdir(parents=True, exist_ok=True)
        measured = report.write(out, options.report)
        rates.store(measured, out / "rates.yaml")
    else:
        work = options.work or Path(tempfile.gettempdir()) / f"bench-gpu-{os.getuid()}"
        places = {SAMPLES: options.images, CIFAR10: options.cifar10}
        environment = {name: str(path.resolve()) for name, path in places.items() if path}
        # The scripts that stages start import this checkout, whether or not it is installed.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(work.resolve() / "inductor")
        runner = Runner(
            out=out, work=work.resolve(), dry=options.dry_run, budget=options.budget, environment=environment
        )
        stages = chosen(options.stages)
        if not options.dry_run and not gpus.usable():
            why = gpus.explanation(gpus.inspect(), os.environ.get("CUDA_VISIBLE_DEVICES"))
            raise UserError(
                f"{why.rpartition(', or give --device cpu')[0]}, or give --dry-run to try the check on a CPU"
            )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # the stage that runs is ended, too
        os.chdir(ROOT)  # where the scripts of data_prep/ and launch/ are
        runner.run(stages)
        measured = report.read([runner.results])
    print(report.summary(measured))
    failed = [line for line in measured if "failed" in line]
    if options.json:
        print_json({"out": str(out), "lines": len(measured), "failed": len(failed)})
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
