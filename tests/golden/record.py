"""trajectory.json: what runs computed when the number TRAJECTORY was last raised, and how what they compute now differs.

trajectory      the number of the code that computed it
cases           by name: `inputs`, what the values are a function of, and `values`, SHA-256 or lists of numbers
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.base.command import UserError
from pipeline.base.files import write_text
from pipeline.run.config import differences, trajectory
from pipeline.run.options import load
from tests.golden.values import Made, Numbers, Value
from tests.helpers import ROOT

FILE = ROOT / "tests/golden/trajectory.json"
DIGITS = 12  # significant ones, of the numbers
ON_PURPOSE = "raise TRAJECTORY in pipeline/run/config.py, run `make golden`, and say so in CHANGELOG.md"


def read(path: Path = FILE) -> dict[str, Any]:
    """The file; of no number and without cases where there is none."""
    return json.loads(path.read_text()) if path.exists() else {"trajectory": 0, "cases": {}}


def complaint(name: str, stored: Mapping[str, Any] | None, made: Made) -> str | None:
    """The message for whoever changed a case's values; None where they equal the stored ones."""
    if stored is None or stored["values"].keys() != made.values.keys():
        return f"{FILE.name} and the tests name different values of '{name}': run `make golden`, which adds new ones"
    if not (changed := changes(stored["values"], made)):
        return None
    if inputs := other_inputs(stored["inputs"], made.inputs):
        return (
            f"the inputs of '{name}' have changed since {FILE.name} was written ({'; '.join(inputs)}), so its values cannot be "
            "compared: if that is on purpose, run `make golden`; existing runs are protected by their own config and data"
        )
    return (
        f"{name}: no longer what it was: {_some(changed)}. What a run computes has changed. "
        f"If that is on purpose: {ON_PURPOSE}; if not, fix it: existing runs would silently continue as different ones"
    )


def changes(stored: Mapping[str, Any], made: Made) -> list[str]:
    """`the training losses (number 7 of 12: 2.31 -> 2.29)` for each value that differs; what one side lacks does not."""
    found = []
    for title, value in made.values.items():
        if title in stored and (place := _difference(stored[title], value)) is not None:
            found.append(title + place)
    return found


def _some(sentences: Sequence[str], most: int = 3) -> str:
    more = f"; and {len(sentences) - most} more" if len(sentences) > most else ""
    return "; ".join(sentences[:most]) + more


def _difference(old: str | Sequence[float], new: Value) -> str | None:
    """Where two values differ, as an addition to their name (empty for a SHA-256); None where they are the same."""
    if isinstance(new, str) or isinstance(old, str):
        return None if old == new else ""
    if len(old) != len(new.values):
        return f" ({len(old)} numbers -> {len(new.values)})"
    for number, (before, now) in enumerate(zip(old, new.values, strict=True), start=1):
        if not math.isclose(before, now, rel_tol=new.relative, abs_tol=new.absolute):
            place = f"number {number} of {len(old)}: " if len(old) > 1 else ""
            return f" ({place}{before:.6g} -> {now:.6g})"
    return None


def other_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` of each input that differs. Configs count as they do when a run is continued: as code reads them."""
    known = dict(old)
    if "config" in old:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(old["config"], file)
            file.flush()
            with contextlib.suppress(UserError):  # it has keys that are gone
                known["config"] = trajectory(load(Path(file.name)))
    return differences(known, new)


def rewrite(path: Path, number: int, made: Mapping[str, Made]) -> list[str]:
    """Write the file for code of TRAJECTORY `number`; what is new in it, in words. What is within its tolerance stays.

    Raises UserError, and writes nothing, where code of the same number computes something else.
    """
    old = read(path)
    found: dict[str, Any] = old["cases"]
    changed, news = [], []
    for name, case in made.items():
        stored = found.get(name, {"inputs": {}, "values": {}})
        new = [title for title in case.values if title not in stored["values"]]
        news += [f"{name}: {title}: new" for title in new]
        news += [f"{name}: {title}: gone" for title in stored["values"] if title not in case.values]
        differing = [f"{name}: {one}" for one in changes(stored["values"], case)]
        if differing and other_inputs(stored["inputs"], case.inputs):
            news += [f"{one}: from other inputs" for one in differing]
        else:
            changed += differing
    if changed and number <= old["trajectory"]:
        raise UserError(
            f"what a run computes has changed ({_some(changed)}), and TRAJECTORY is {number} where {path.name} is of "
            f"{old['trajectory']}: if that is on purpose, raise TRAJECTORY in pipeline/run/config.py first, so that this "
            "code does not continue existing runs"
        )
    news += [f"{one}: changed" for one in changed]
    news += [f"{name}: gone" for name in found if name not in made]
    cases = {name: _kept(found.get(name, {}).get("values", {}), case) for name, case in made.items()}
    if number != old["trajectory"]:
        news.append(f"trajectory: {old['trajectory']} -> {number}")
    if {"trajectory": number, "cases": cases} != old:
        write_text(path, _text(number, cases))
    return news


def _kept(old: Mapping[str, Any], made: Made) -> dict[str, Any]:
    values = {}
    for title, value in made.values.items():
        same = title in old and _difference(old[title], value) is None
        values[title] = old[title] if same else _plain(value)
    return {"inputs": dict(made.inputs), "values": values}


def _plain(value: Value) -> str | list[float]:
    return [float(f"{one:.{DIGITS}g}") for one in value.values] if isinstance(value, Numbers) else value


def _text(number: int, cases: Mapping[str, Any]) -> str:
    """JSON with one line for each value, so that what changed shows in a diff."""
    blocks = []
    for name, case in cases.items():
        values = ",\n".join(f"    {json.dumps(title)}: {json.dumps(value)}" for title, value in case["values"].items())
        blocks.append(
            f"  {json.dumps(name)}: {{\n   {json.dumps('inputs')}: {json.dumps(case['inputs'])},\n"
            f"   {json.dumps('values')}: {{\n{values}\n   }}\n  }}"
        )
    return f'{{\n "trajectory": {number},\n "cases": {{\n' + ",\n".join(blocks) + "\n }\n}\n"
