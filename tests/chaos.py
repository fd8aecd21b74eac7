"""Kill a training again and again, start it on another number of processes each time, and compare it with one left alone.

python -m tests.chaos --kills 50

Every kill is a real SIGKILL, at a drawn moment: while the job starts, computes, logs, evaluates or saves; of all its ranks
or, once they have met, of one, whose fellows must then end by themselves. The number of processes is drawn among 1, 2, 4
and 8 at every start.
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base import command
from pipeline.base.command import UserError
from pipeline.base.parsing import CommandParser
from pipeline.base.progress import Progress
from pipeline.base.tables import print_json, print_table
from pipeline.evaluation.config import EvaluationConfig
from pipeline.run.config import Config
from pipeline.tracking import TrackingConfig
from pipeline.training.checkpoint import CheckpointConfig
from tests.digits import write_dataset
from tests.fleet import Fleet
from tests.patience import limit, set_patience
from tests.pipeline.small_runs import config_of, series, weights

SIZES = (1, 2, 4, 8)
WHILE_STARTING = 0.25  # share of the kills that come in the first second of a job
OF_ONE_RANK = 0.2  # share of the kills of a training job that one rank alone receives
LINES = range(1, 6)  # of metrics that a job writes before another kill comes
ITERATIONS_PER_KILL = 8  # more than a life lasts on average: the run is not over before its last kill
ITERATIONS_BEHIND = 3.0  # of one process, within which the kill comes once the job has written its lines
ENDS_WITHIN = 60.0  # seconds for the fellows of a killed rank, on a quiet machine


def chaos_config(dataset: Path, runs: Path, name: str, kills: int) -> Config:
    """A net of 8 layers on 32 digits at a time, in 8 normalization groups, saved every third iteration."""
    return replace(
        config_of(dataset, runs, name),
        iterations=ITERATIONS_PER_KILL * kills + 20,
        bn_group=4,
        timeout_seconds=limit(120),
        evaluation=EvaluationConfig(every=50, short_side=36),
        checkpoint=CheckpointConfig(every=3),
        tracking=TrackingConfig(log_every=1, mlflow=False),
    )


def lines_of(config: Config) -> int:
    metrics = config.run_folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


class Killer:
    """Starts jobs and kills them; counts what it did."""

    def __init__(self, config: Config, logs: Path, seed: int, within: float) -> None:
        """within: seconds, within which a kill comes once the job has written its lines."""
        self.config, self.logs, self.generator, self.within = config, logs, random.Random(seed), within
        self.counts: Counter[str] = Counter()
        self.over = False  # the run was finished before a kill came

    def kill_once(self) -> None:
        draw = self.generator
        size = draw.choice(SIZES)
        job = Fleet(self.config, size, self.logs)
        starting = draw.random() < WHILE_STARTING
        if starting:
            moment, before = time.monotonic() + draw.uniform(0, 1), lines_of(self.config)
            while time.monotonic() < moment and lines_of(self.config) == before:  # a fast machine has started sooner
                time.sleep(0.002)
            self.counts["while starting"] += 1
        else:
            wanted = lines_of(self.config) + draw.choice(LINES)
            while lines_of(self.config) < wanted and any(rank.is_alive() for rank in job.ranks):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, self.within))
            self.counts["while training"] += 1
        if all(rank.exitcode == 0 for rank in job.ranks):
            self.over = True
            return
        # A rank that waits for a dead one to appear learns of it by `timeout_seconds` only, or from its launcher: none here.
        if size > 1 and not starting and draw.random() < OF_ONE_RANK:
            draw.choice(job.ranks).kill()
            self.counts["of one rank"] += 1
            codes = job.wait(ENDS_WITHIN)
        else:
            job.kill()
            codes = job.wait(ENDS_WITHIN)
        self.counts[f"on {size}"] += 1
        if -signal.SIGKILL not in codes:
            raise AssertionError(f"the job ended by itself ({codes}):\n{job.said(0)}")

    def finish(self) -> None:
        size = self.generator.choice(SIZES)
        job = Fleet(self.config, size, self.logs)
        codes = job.wait(600 + self.config.iterations)
        assert codes == [0] * size, job.said(0)


def run(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "Kills a training at random moments and compares what becomes of it with one left alone.",
        "python -m tests.chaos --kills 50",
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the moments, numbers of processes and victims (default: 0)"
    )
    parser.add_json_option()
    own = parser.parse_args(argv)
    set_patience()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        figures = chaos(Path(folder), own.kills, own.seed)
    if own.json:
        print_json(figures)
    return 0


def chaos(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """The figures of the closing table. Raises UserError where the two runs differ."""
    logs, dataset = folder / "logs", write_dataset(folder)
    reference = chaos_config(dataset, folder / "runs", "left-alone", kills)
    started = time.monotonic()
    job = Fleet(reference, 1, logs)
    assert job.wait(600 + reference.iterations) == [0], job.said(0)
    alone = time.monotonic() - started

    within = ITERATIONS_BEHIND * alone / reference.iterations
    killer = Killer(replace(reference, name="killed"), logs, seed, within)
    started = time.monotonic()
    with Progress(kills, "kills", "kills") as progress:
        for _ in range(kills):
            killer.kill_once()
            if killer.over:
                raise UserError("the run was finished before its last kill: raise ITERATIONS_PER_KILL")
            progress.advance(iteration=str(lines_of(killer.config)))
        killer.finish()
    seconds = time.monotonic() - started
    same_weights = weights(killer.config) == weights(reference)
    same_series = series(killer.config) == series(reference)
    print_table(
        f"{kills} kills, seed {seed}",
        ("", "iterations", "seconds", "weights, SHA-256", "lines of metrics"),
        [
            (one.name, one.iterations, f"{taken:.0f}", weights(one)[:16], len(series(one)))
            for one, taken in ((reference, alone), (killer.config, seconds))
        ],
    )
    print(", ".join(f"{count} {name}" for name, count in sorted(killer.counts.items())))
    if not (same_weights and same_series):
        raise UserError(f"the killed run differs (weights equal: {same_weights}, metrics equal: {same_series})")
    return {"kills": kills, "seed": seed, "seconds": round(seconds, 1), "weights": weights(reference), **killer.counts}


if __name__ == "__main__":
    command.run(run)
