"""The files in system/ of a run folder: one for each machine and attempt, append-only, one JSON object per line.

The first line says what the file is about (`About`); each further line is a sample, the average since the line before:

    {"time": 1764000000000, "seconds": 60.0, "values": {"cpu_utilization_percentage": 41.2, "gpu_0_power_usage_watts": 310.0},
     "joules": {"gpu_0": 18012.3, "package-0": 4100.9}}

`time` is in milliseconds since 1970; `seconds` and `joules` count from the attempt's first sample, so that the last line
holds the attempt's sums. Nobody continues a file of an earlier attempt: only a last line can be torn.
Imports light modules alone: the sampler must start fast and stay small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.base.json_text import parse_json
from pipeline.base.layout import system_files
from pipeline.base.regular import open_regular

TAIL_BYTES = 1 << 16  # holds more than one line of a machine with 16 GPUs


@dataclass(frozen=True, kw_only=True)
class About:
    """Of which machine and attempt the samples are.

    rank: the lowest rank on that machine. attempt: its number in run.json, from 1. gpus: how many GPUs the ranks there use.
    cpu_share: the ranks' part of the machine's cores, to 1: a package's counter also counts what other jobs take. costs: the
    values of the config section `tracking.costs`.
    """

    host: str
    rank: int
    attempt: int
    gpus: int = 0
    cpu_share: float = 1.0
    costs: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line, as the module describes."""

    time: int
    seconds: float
    values: Mapping[str, float]
    joules: Mapping[str, float]

    def to_line(self) -> bytes:
        values = {name: round(value, 3) for name, value in self.values.items()}
        joules = {name: round(value, 3) for name, value in self.joules.items()}
        line = {"time": self.time, "seconds": round(self.seconds, 3), "values": values, "joules": joules}
        return json.dumps(line).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a sampler is to do: the argument of its process. `every`: seconds between lines. `gpus`: identities."""

    folder: str
    file: str
    parent: int
    every: float
    gpus: tuple[str, ...]
    about: About

    @classmethod
    def from_json(cls, text: str) -> Task:
        values = parse_json(text)
        return cls(**values | {"gpus": tuple(values["gpus"]), "about": About(**values["about"])})


def read_about(line: bytes) -> About | None:
    """None where the line is torn."""
    try:
        values = parse_json(line)
        return About(**{key.name: values[key.name] for key in fields(About) if key.name in values})
    except (ValueError, TypeError):
        return None


def read_sample(line: bytes) -> Sample | None:
    """None where the line is torn."""
    try:
        values = parse_json(line)
        return Sample(**{key.name: values[key.name] for key in fields(Sample)})
    except (ValueError, TypeError, KeyError):
        return None


def read_sums(folder: Path) -> Iterator[tuple[About, Sample]]:
    """What each file in system/ of a run folder is about, with its last sample; oldest attempt first."""
    for path in system_files(folder):
        with open_regular(path) as file:
            about = read_about(file.readline())
            start = file.tell()
            file.seek(max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            samples = [sample for line in file.readlines() if (sample := read_sample(line))]
        if about and samples:
            yield about, samples[-1]
