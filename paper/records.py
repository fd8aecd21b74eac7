"""Records of runs, to keep beside a report, in git too: copies of a run's small files and hashes of its large files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.files import file_sha256, write_text
from pipeline.base.json_text import parse_json
from pipeline.base.layout import CHECKPOINTS, CONFIG, ENSEMBLE, METRICS, PARTIAL_SCORES, RESPONSES, RUN, SCORES
from pipeline.base.regular import read_regular
from pipeline.run.config import to_yaml
from pipeline.run.folder import read_facts
from pipeline.run.options import load

RECORD = "record.json"


def keep_records(runs: Sequence[Path], into: Path) -> dict[Path, Path]:
    """Write or renew the record of each run folder in `into`/NAME; the records' places. Other folders there do not change.

    A record holds metrics.jsonl and responses.json as they are; config.yaml, run.json and an ensemble's ensemble.json without
    the folders, addresses and host names of this machine; record.json with bytes and SHA-256 of each checkpoint and score
    file. Raises UserError where something else stands in the place of a record, or two runs have one name; then nothing is
    written.
    """
    places = {run: into / run.name for run in runs}
    for run, place in places.items():
        if twin := next((other for other in runs if other != run and into / other.name == place), None):
            raise UserError(f"{run} and {twin} would have one record, {place}: give --runs one of their folders")
    for place in places.values():
        if place.exists() and not (place / RECORD).is_file():
            raise UserError(f"{place} is no record of an earlier report: give --records a folder for records alone")
    for run, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / RECORD, json.dumps({"run": run.name, "files": _large_files(run)}, indent=1) + "\n")
        if (run / ENSEMBLE).is_file():
            write_text(place / ENSEMBLE, _ensemble(run))
        else:
            write_text(place / CONFIG, _config(run))
            write_text(place / RUN, _facts(run))
        for name in (METRICS, RESPONSES):
            if (run / name).is_file():
                shutil.copyfile(run / name, place / name)
            else:
                (place / name).unlink(missing_ok=True)
    return places


def _large_files(run: Path) -> dict[str, dict[str, int | str]]:
    """Size and hash by path in the run folder, without the files that a training prunes meanwhile."""
    files: dict[str, dict[str, int | str]] = {}
    for path in sorted([*run.glob(f"{CHECKPOINTS}/*.pt"), *run.glob(f"{SCORES}/*.npz")]):
        if path.name.endswith(PARTIAL_SCORES):
            continue
        try:
            files[str(path.relative_to(run))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        except FileNotFoundError:
            continue
    return files


def _config(run: Path) -> str:
    config = load(run / CONFIG)
    loader, tracking = replace(config.loader, stage_to=None), replace(config.tracking, uri=None)
    data, runs = Path(config.data).name, Path(config.runs).name
    return to_yaml(replace(config, data=data, runs=runs, loader=loader, tracking=tracking))


def _facts(run: Path) -> str:
    facts = read_facts(run)
    attempts = [{key: attempt[key] for key in attempt if key != "host"} for attempt in facts.get("attempts", [])]
    return json.dumps({**facts, "attempts": attempts}, indent=1) + "\n"


def _ensemble(run: Path) -> str:
    """ensemble.json with the members' score files as RUN/scores/FILE."""
    recorded = parse_json(read_regular(run / ENSEMBLE))
    for result in recorded["protocols"].values():
        for member in result["members"]:
            member["scores"] = "/".join(Path(member["scores"]).parts[-3:])
    return json.dumps(recorded, indent=1) + "\n"
