"""Typed files: what fits comes out as dataclasses, everything else as one sentence with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from pipeline.base.command import UserError
from pipeline.base.typed import read_typed


@dataclass(frozen=True, kw_only=True)
class Net:
    arch: str
    seeds: tuple[int, ...] = (0,)
    shortcut: Literal["A", "B"] = "A"


@dataclass(frozen=True, kw_only=True)
class Axes:
    limits: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    nets: tuple[Net, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    note: str | None = None
    axes: Axes | None = None
    size: int | str = 0
    marks: Mapping[str, str | bool] = field(default_factory=dict)


def test_what_fits_comes_out_typed() -> None:
    text = "{title: T, nets: [{arch: a, seeds: [1, 2]}, {arch: b, shortcut: B}], paper: {top1: 7}, share: 2, "
    text += "axes: {limits: [0, 1]}}"
    nets = (Net(arch="a", seeds=(1, 2)), Net(arch="b", shortcut="B"))
    wanted = Table(title="T", nets=nets, paper={"top1": 7.0}, share=2.0, axes=Axes(limits=(0.0, 1.0)))
    assert read_typed(Table, yaml.safe_load(text), "t.yaml") == wanted


def test_a_name_that_is_no_utf8_stays_as_it_is() -> None:
    """As `os.fsdecode` gives names of files, at every depth, beside characters of all planes."""
    name = "b\udcffd \ue000 \U0001f600"
    values = {"title": name, "nets": [{"arch": name}], "paper": {name: 1.0}, "marks": {"a": name}}
    wanted = Table(title=name, nets=(Net(arch=name),), paper={name: 1.0}, marks={"a": name})
    assert read_typed(Table, values, "t.yaml") == wanted


def test_a_long_value_is_cut_in_the_sentence() -> None:
    with pytest.raises(UserError) as refused:
        read_typed(Table, {"title": ["x" * 10_000], "nets": []}, "t.yaml")
    assert "'title' in t.yaml is ['xxx" in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([1], "t.yaml holds no 'key: value' lines"),
        (None, "t.yaml holds no 'key: value' lines"),
        ({"nets": []}, "'title' is missing in t.yaml: add it"),
        ({"title": "T", "nets": [{}]}, "'nets[0].arch' is missing in t.yaml: add it"),
        ({"title": "T", "nets": 3}, "'nets' in t.yaml is 3: give a list"),
        ({"title": "T", "nets": [3]}, "'nets[0]' in t.yaml is 3: give 'key: value' lines"),
        ({"title": 3, "nets": []}, "'title' in t.yaml is 3: give some text"),
        ({"title": "T", "nets": [], "share": "1"}, "'share' in t.yaml is '1': give a number"),
        ({"title": "T", "nets": [], "share": True}, "'share' in t.yaml is True: give a number"),
        ({"title": "T", "nets": [{"arch": "a", "seeds": [1.5]}]}, "'nets[0].seeds[0]' in t.yaml is 1.5: give a whole number"),
        ({"title": "T", "nets": [], "paper": {"top1": "x"}}, "'paper.top1' in t.yaml is 'x': give a number"),
        ({"title": "T", "nets": [], "titel": "T"}, "unknown key 'titel' in t.yaml: did you mean 'title'?"),
        ({"title": "T", "nets": [{"arch": "a", "seed": 1}]}, "unknown key 'nets[0].seed' in t.yaml: did you mean 'seeds'?"),
        ({"title": "T", "nets": [], "axes": {"limit": 1}}, "unknown key 'axes.limit' in t.yaml: did you mean 'limits'?"),
        ({"title": "T", "nets": [], "axes": {"limits": [0]}}, "'axes.limits[1]' is missing in t.yaml: add it"),
        ({"title": "T", "nets": [], "axes": {"limits": [0, 1, 2]}}, "'axes.limits' in t.yaml is [0, 1, 2]: give fewer values"),
        ({"title": "T", "nets": [], "size": True}, "'size' in t.yaml is True: give a whole number or some text"),
        ({"title": "T", "nets": [], "marks": {"a": [1]}}, "'marks.a' in t.yaml is [1]: give some text or true or false"),
        ({"title": "T", "nets": [{"arch": "a", "shortcut": "C"}]}, "'nets[0].shortcut' in t.yaml is 'C': valid: A, B"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_typed(Table, values, "t.yaml")
    assert str(error.value) == sentence
