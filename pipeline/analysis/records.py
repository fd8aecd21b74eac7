"""Copies of what a report is read from, small enough to be kept beside it, in git too: no weights, scores or images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.command import UserError
from pipeline.config import load, to_yaml
from pipeline.evaluation.nets import CHECKPOINTS
from pipeline.evaluation.score_files import PARTIAL, SCORES
from pipeline.experiments.evidence import RESPONSES
from pipeline.files import file_sha256, write_text
from pipeline.run_folder import CONFIG, RUN
from pipeline.tracking.journal import METRICS

FILES = "files.json"  # marks a record


def keep_records(runs: Sequence[Path], into: Path) -> dict[Path, Path]:
    """The place of each run folder's record, `into`/NAME; records of other runs there are removed.

    A record is config.yaml (its `data` and `runs` without the folders of this machine), run.json, metrics.jsonl,
    responses.json, and files.json: bytes and SHA-256 of each checkpoint and score file, by its path in the run folder.
    Raises UserError where `into` holds the run folders themselves.
    """
    if any(run.parent.resolve() == into.resolve() for run in runs):
        raise UserError(f"{into} holds the run folders themselves: give with --records another folder")
    if into.is_dir():
        for old in into.iterdir():
            if (old / FILES).is_file():
                shutil.rmtree(old)
    places = {run: into / run.name for run in runs}
    for run, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        for name in (RUN, METRICS, RESPONSES):
            if (run / name).is_file():
                shutil.copyfile(run / name, place / name)
        config = load(run / CONFIG)
        config = replace(config, data=Path(config.data).name, runs=Path(config.runs).name)
        write_text(place / CONFIG, to_yaml(config))
        large = [*run.glob(f"{CHECKPOINTS}/*.pt"), *run.glob(f"{SCORES}/*.npz")]
        files = {
            str(path.relative_to(run)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(large)
            if not path.name.endswith(PARTIAL)
        }
        write_text(place / FILES, json.dumps(files, indent=1) + "\n")
    return places
