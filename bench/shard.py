"""Measures sharding throughput against `tar` of the same files, and how it grows with the number of workers.

Runs are interleaved. No file is in the page cache when a run starts, and all output is on the disk when the run ends. A
limit on the reading rate of both sides (cgroups v1, root) shows the case in which the disk is the bottleneck.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.command import UserError, run
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table

REPOSITORY = Path(__file__).parents[1]
SAMPLES = REPOSITORY.parent / "shared" / "data" / "imagenet-samples.tar"
BLKIO = Path("/sys/fs/cgroup/blkio")


def write_source(samples: Path, folder: Path, copies: int) -> int:
    """Write class folders with `copies` copies of every image in the tar `samples`; return their size in bytes."""
    size = 0
    with tarfile.open(samples) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            data, name = file.read(), Path(member.name)
            target = folder / "train" / name.parent.name
            target.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                (target / f"{name.stem}_{copy:04d}.JPEG").write_bytes(data)
            size += copies * len(data)
    os.sync()
    return size


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@contextmanager
def read_limit(folder: Path, megabytes_per_second: float) -> Iterator[list[str] | None]:
    """Yield a command prefix that limits the reading rate of a process and its children; None if that is not possible."""
    group = BLKIO / f"bench-shard-{os.getpid()}"
    device = os.stat(folder).st_dev
    try:
        group.mkdir()
        limit = f"{os.major(device)}:{os.minor(device)} {int(megabytes_per_second * 1e6)}"
        (group / "blkio.throttle.read_bps_device").write_text(limit, encoding="utf-8")
    except OSError as error:
        if group.exists():
            group.rmdir()
        print(f"reading cannot be limited here ({error.strerror}): needs root, cgroups v1, a disk", file=sys.stderr)
        yield None
        return
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        deadline = time.monotonic() + 10
        while group.exists() and time.monotonic() < deadline:
            try:
                group.rmdir()
            except OSError:  # a process that has just ended is still counted
                time.sleep(0.1)


def seconds_of(command: list[str], source: Path, output: Path) -> float:
    """Return the wall-clock seconds of a cold run of `command`; its output is removed."""
    forget(source)
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    return seconds


def shard_command(source: Path, output: Path, workers: int) -> list[str]:
    script = [sys.executable, str(REPOSITORY / "data_prep" / "shard_imagenet.py"), str(source), str(output)]
    return [*script, "--workers", str(workers), "--samples-per-shard", "100"]


def tar_command(source: Path, output: Path) -> list[str]:
    # Flushed to the disk, as the shards are.
    return ["sh", "-c", 'tar -cf "$1" -C "$2" . && sync "$1"', "sh", str(output), str(source)]


def interleaved(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with Progress(repeats * len(sides), " / ".join(sides), "runs") as progress:
        for _, (name, side) in itertools.product(range(repeats), sides.items()):
            seconds[name].append(side())
            progress.advance()
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description="Measure sharding against tar of the same files.\n\nexample:\n  python bench/shard.py --copies 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="a tar of JPEGs in class folders")
    parser.add_argument("--copies", type=int, default=20, metavar="N", help="per image (default 20: 326 MB)")
    parser.add_argument("--folder", type=Path, help="where to read and write (default: the system's temporary folder)")
    parser.add_argument("--limit", type=float, default=20.0, metavar="MB/S", help="reading rate (default 20)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each side (default 3)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    options = parser.parse_args()
    if not options.samples.is_file():
        raise UserError(f"{options.samples} does not exist: give a tar of JPEGs in class folders with --samples")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-shard-") as temporary:
        work = Path(temporary)
        size = write_source(options.samples, work / "source", options.copies)

        def side(command: Callable[[Path, Path], list[str]], prefix: list[str]) -> Callable[[], float]:
            return lambda: seconds_of([*prefix, *command(work / "source", work / "out")], work / "source", work / "out")

        def sharding(workers: int) -> Callable[[Path, Path], list[str]]:
            return lambda source, output: shard_command(source, output, workers)

        seconds: dict[str, float] = {}
        with read_limit(work, options.limit) as prefix:
            if prefix:
                limited = f"reading at {options.limit:g} MB/s"
                sides = {
                    f"tar, {limited}": side(tar_command, prefix),
                    f"shard, {limited}": side(sharding(cores), prefix),
                }
                seconds |= interleaved(sides, options.repeats)
        sides = {"tar": side(tar_command, []), "shard": side(sharding(cores), [])}
        sides["shard, 1 worker"] = side(sharding(1), [])
        seconds |= interleaved(sides, options.repeats)
    rates = {name: size / 1e6 / taken for name, taken in seconds.items()}
    ratios = {
        name.replace("shard", "shard/tar", 1): rates[name] / rates[name.replace("shard", "tar", 1)]
        for name in rates
        if name.startswith("shard") and "worker" not in name
    }
    ratios[f"{cores} workers/1 worker"] = rates["shard"] / rates["shard, 1 worker"]
    print_table(
        f"{size / 1e6:,.0f} MB",
        ("command", "s", "MB/s"),
        [(name, f"{seconds[name]:.2f}", f"{rates[name]:.1f}") for name in seconds],
    )
    print_table("ratios", ("of rates", "ratio"), [(name, f"{ratio:.2f}") for name, ratio in ratios.items()])
    if options.json:
        print_json({"ratios": ratios, "megabytes_per_second": rates, "cores": cores})


if __name__ == "__main__":
    run(main)
