"""Every error that the files of one run or ensemble prove, whatever tables the paper has: for runs of no experiment.

The rules are those of paper/evidence.py: an error counts where its score file was made from the checkpoint that ends a
finished run, on the run's own dataset and under its own settings. What the run logged at its end stands in for the
centre crop that was not tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paper.evidence import Measured, measured_errors
from paper.logged import VAL_KINDS, logged_errors
from paper.state import RunState
from pipeline.base.command import UserError
from pipeline.base.layout import ENSEMBLE
from pipeline.evaluation.ensemble import all_ranks, check_members
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.evaluation.score_files import canonical_scores
from pipeline.evaluation.scores import Provenance, Scores, load, ranks_of
from pipeline.run.folder import trained_on

WEIGHTS = {"final": "", "recomputed-bn": ", BN recomputed", "ema": ", EMA"}  # as tables name them


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The errors of one net or ensemble under one protocol. protocol: `val, in training` where the run logged them."""

    protocol: str
    weights: str
    split: str
    measured: Measured

    @property
    def name(self) -> str:
        """For tables: `ten-crop, BN recomputed`."""
        return f"{self.protocol}{WEIGHTS.get(self.weights, '')}" + ("" if self.split == "val" else f", {self.split}")


@dataclass(frozen=True, kw_only=True)
class EnsembleTests:
    """An ensemble as its folder and its members' score files show it.

    members: their names, of the first protocol. dataset_sha256: of its members' scores. missing: why a protocol has no errors.
    """

    members: tuple[str, ...]
    dataset_sha256: str | None
    tests: tuple[Tested, ...]
    missing: tuple[str, ...]


def tests_of(state: RunState) -> tuple[Tested, ...]:
    """The errors of a run that is finished, in the order of the protocols; none of any other run."""
    if state.kind != "finished":
        return ()
    final = (state.checkpoint, trained_on(state.folder))
    found = canonical_scores(state.folder, lambda made: (made.checkpoint, made.dataset_sha256) == final)
    tests = [_test(scores.provenance, measured_errors(ranks_of(scores))) for scores in found]
    known = {(test.protocol, test.weights, test.split) for test in tests}
    for weights in VAL_KINDS:
        if ("center", weights, "val") not in known and (logged := logged_errors(state, weights)):
            tests.append(Tested(protocol="val, in training", weights=weights, split="val", measured=logged))
    return tuple(sorted(tests, key=_order))


def ensemble_tests(folder: Path, states: Mapping[Path, RunState]) -> EnsembleTests:
    """The errors of an ensemble, averaged anew from its members' score files. states: of the runs, by resolved folder.

    Raises UserError where ensemble.json is damaged.
    """
    members: tuple[str, ...] = ()
    tests, missing, sources = [], [], set()
    for protocol, entries in _recorded(folder):
        names = tuple(name for name, _ in entries)
        members = members or names
        try:
            scores = [_member(folder, name, path, states) for name, path in entries]
            check_members(scores, names)
        except UserError as error:
            missing.append(f"{protocol}: {error}")
            continue
        made = scores[0].provenance
        sources.add(made.dataset_sha256)
        ranks = all_ranks(scores, [tuple(range(len(scores)))])[0]
        tests.append(_test(made, measured_errors(ranks)))
    return EnsembleTests(
        members=members,
        dataset_sha256=sources.pop() if len(sources) == 1 else None,
        tests=tuple(sorted(tests, key=_order)),
        missing=tuple(missing),
    )


def _recorded(folder: Path) -> Iterator[tuple[str, list[tuple[str, Path]]]]:
    """(protocol, (name, score file) of each member) in an ensemble's folder."""
    path = folder / ENSEMBLE
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["protocols"]
        for protocol, found in recorded.items():
            yield protocol, [(str(member["name"]), Path(member["scores"])) for member in found["members"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged (it is not what pipeline.ensemble wrote): average again") from None


def _member(folder: Path, name: str, path: Path, states: Mapping[Path, RunState]) -> Scores:
    """The scores of a member: where they were, or in the run of the same name beside the ensemble, if all was moved.

    Raises UserError where they are gone, or no longer those of their run's final checkpoint.
    """
    beside = folder.parent / Path(*path.parts[-3:])
    path = beside if beside.is_file() else path
    scores = load(path)
    state = states.get(path.resolve().parent.parent)
    if state is not None and state.checkpoint != scores.provenance.checkpoint:
        raise UserError(f"the scores of {name} are not those of its final checkpoint")
    return scores


def _test(made: Provenance, measured: Measured) -> Tested:
    return Tested(protocol=made.protocol, weights=made.weights, split=made.split, measured=measured)


def _order(test: Tested) -> tuple[int, int, str]:
    """For sorting: what the run logged, then the protocols; for each the final weights first."""
    protocols, weights = list(PROTOCOLS), list(WEIGHTS)
    place = protocols.index(test.protocol) if test.protocol in protocols else -1
    return place, weights.index(test.weights) if test.weights in weights else len(weights), test.split
