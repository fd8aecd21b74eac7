"""The description of a run on its page in MLflow, in Markdown: what it is, its errors, how to go on, where it lies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.output import shown
from pipeline.tracking.figures import epoch
from pipeline.tracking.journal import Record
from pipeline.tracking.limits import TAG_LENGTH
from pipeline.tracking.state import Wanted
from pipeline.tracking.view import EVALUATIONS

CUT = "\n\n..."
CLASSES_SHOWN, NAME_LENGTH = 10, 60
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~:])")  # of Markdown
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
STARTS_FROM = "starts_from"  # tag of a training that starts from weights (pipeline/run/starting_point.py)
TOP1, TOP5 = "top1_error", "top5_error"
Errors = Mapping[str, tuple[float, float]]  # kind of metrics -> (top-1, top-5 error), percent


@dataclass(frozen=True, kw_only=True)
class MemberRun:
    """A member of an ensemble. `run_id` and `experiment_id` of its MLflow run; None where MLflow does not know it."""

    name: str
    run_id: str | None = None
    experiment_id: str | None = None
    errors: Errors = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"{self.name} ({self.run_id})" if self.run_id else self.name


def errors_in(records: Iterable[Record]) -> dict[str, tuple[float, float]]:
    """The latest errors of each kind of evaluation; those of the training itself are not among them."""
    tested = (record for record in records if record.kind != "train" and TOP1 in record.values)
    return {record.kind: (record.values[TOP1], record.values.get(TOP5, float("nan"))) for record in tested}


def describe(
    wanted: Wanted,
    kind: str,
    dataset: Mapping[str, object],
    errors: Errors,
    members: Sequence[MemberRun],
    folder: Path,
    energy: str = "",
) -> str:
    """Return the description of the run in `folder`. kind: training, ensemble or report. dataset: as in tracking.json.

    energy: that the run used, in words; "" where it was not measured.
    """
    if kind == "training":
        used = f"Energy: {escape(energy)}." if energy else ""
        parts = [_training(wanted, dataset), _start(wanted), _errors_table(errors), used, _command(wanted)]
    elif kind == "ensemble":
        heading = f"The average of the softmax scores of {len(members)} nets, in the same columns as theirs."
        parts = [heading, _members_table(errors, members)]
    else:
        parts = ["Our runs beside the paper's tables and figures: see *Artifacts*.", ""]
    parts.append(f"Folder: {_code(str(folder))}")
    text = "\n\n".join(filter(None, parts))
    return text if len(text) <= TAG_LENGTH else text[: TAG_LENGTH - len(CUT)] + CUT


def escape(text: str) -> str:
    """Return `text` so that Markdown and HTML show it as it is, also in a table."""
    marked = SPECIAL.sub(r"\\\1", text)
    return "".join(ENTITIES.get(sign, sign) for sign in marked)


def first_of(classes: Sequence[str]) -> str:
    """The first names of a net's classes, in Markdown, and where the others stand."""
    names = ", ".join(escape(shown(name)[:NAME_LENGTH]) for name in classes[:CLASSES_SHOWN])
    return names if len(classes) <= CLASSES_SHOWN else f"{names}, ... (all in `classes.txt`)"


def _training(wanted: Wanted, dataset: Mapping[str, object]) -> str:
    net = escape(wanted.params.get("arch", wanted.name))
    splits = dataset.get("splits")
    sizes = []
    if isinstance(splits, Mapping):
        sizes = [f"{count:,} {escape(name)}" for name, count in splits.items()]
    text = f"**{net}**"
    if dataset:
        text += f" on **{escape(str(dataset['name']))}**"
        shown = [f"{' and '.join(sizes)} images"] if sizes else []
        shown += [f"{dataset['classes']:,} classes"] if "classes" in dataset else []
        text += f" ({', '.join(shown)})" if shown else ""
    iterations, batch = (number(wanted.params, key) for key in ("iterations", "batch"))
    if iterations and batch:
        text += f": {iterations:,} updates of {batch:,} images"
        images = splits.get("train") if isinstance(splits, Mapping) else None
        text += f", {epoch(iterations, batch, images):,.4g} epochs" if images else ""
    return text + "."


def _start(wanted: Wanted) -> str:
    """The weights that the run started from; empty where it started at random."""
    start = wanted.tags.get(STARTS_FROM, "")
    return f"Starts from {escape(start)}." if start else ""


def number(params: Mapping[str, str], key: str) -> int | None:
    """Return a whole number among the parameters; None where it is none."""
    text = params.get(key, "")
    return int(text) if text.isdecimal() else None


def _errors_table(errors: Errors) -> str:
    if not errors:
        return "No evaluation yet."
    kinds = [kind for kind, _ in _ordered(errors)]
    rows = [_row(f"top-{k}", [errors[kind][place] for kind in kinds]) for place, k in enumerate((1, 5))]
    return "\n".join([*_head("error %", kinds), *rows])


def _members_table(errors: Errors, members: Sequence[MemberRun]) -> str:
    kinds = [kind for kind, _ in _ordered(errors)]
    lines = [*_head("top-1 error %", kinds), _row("**ensemble**", _top1(errors, kinds))]
    for member in members:
        name = escape(member.name)
        if member.run_id:
            name = f"[{name}](#/experiments/{member.experiment_id}/runs/{member.run_id}?workflowType=machine_learning)"
        lines.append(_row(name, _top1(member.errors, kinds)))
    return "\n".join(lines)


def _top1(errors: Errors, kinds: Sequence[str]) -> list[float]:
    """NaN where there is none."""
    return [errors[kind][0] if kind in errors else float("nan") for kind in kinds]


def _head(corner: str, kinds: Sequence[str]) -> list[str]:
    """One column for each kind: MLflow folds a description after some four lines, and a training has many kinds."""
    return [f"| {' | '.join([corner, *map(escape, kinds)])} |", f"|---{'|---' * len(kinds)}|"]


def _row(name: str, errors: Sequence[float]) -> str:
    return f"| {' | '.join([name, *map(_percent, errors)])} |"


def _ordered(errors: Errors) -> list[tuple[str, tuple[float, float]]]:
    """The errors in the order of the table's columns, others behind them."""
    known = {kind: place for place, kind in enumerate([*EVALUATIONS, "val", "val_ema", "val_recomputed_bn"])}
    return sorted(errors.items(), key=lambda item: (known.get(item[0], len(known)), item[0]))


def _percent(error: float) -> str:
    return f"{error:.2f}" if error == error else "-"


def _command(wanted: Wanted) -> str:
    """The command line of the latest attempt; empty for a run from before it was recorded."""
    if not wanted.command:
        return ""
    return f"Started by this command, which also goes on where the run stopped:\n\n{_block(wanted.command)}"


def _block(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _code(text: str) -> str:
    """A span of code; where `text` holds a backtick or a line's end, the text itself."""
    return escape(text) if re.search(r"[`\r\n]", text) else f"`{text}`"
