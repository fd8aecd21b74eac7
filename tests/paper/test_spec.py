"""Experiments as data: what the shipped files say, how runs are named and shortened, what a wrong file gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from paper.reading import CONFIGS, find, names, read_experiment
from paper.spec import RunSpec, arguments, resolve
from pipeline.base.command import UserError
from pipeline.run.config import differences, to_plain, trajectory
from pipeline.run.options import load, parse, parser

SMALL = """
title: Two small nets
place: Table 0
config: demo.yaml
measure: error
protocols: [center]
rows:
  - {label: A net, nets: [{arch: resnet8, seeds: [0, 1]}], paper: {top1_error: 8}}
  - {label: plain, nets: [{arch: plain8}]}
"""


def test_the_papers_experiments_are_there() -> None:
    wanted = {"table2", "table3", "table4", "table5", "table6", "fig1", "fig4", "fig6", "fig7"}
    assert wanted <= set(names())


def test_one_name_is_one_training_in_all_experiments() -> None:
    by_name: dict[str, RunSpec] = {}
    for name in names():
        for spec in find(name).runs:
            assert by_name.setdefault(spec.name(), spec) == spec
    assert len(by_name) > 25


def test_runs_of_table_3() -> None:
    runs = {spec.name(): resolve(spec) for spec in find("table3").runs}
    assert list(runs) == [
        "plain34-seed0", "resnet34-seed0", "resnet34B-seed0", "resnet34C-seed0",
        "resnet50-seed0", "resnet101-seed0", "resnet152-seed0",
    ]  # fmt: skip
    recipe = load(CONFIGS / "imagenet.yaml")
    assert trajectory(runs["resnet50-seed0"]) == trajectory(recipe)
    assert differences(trajectory(recipe), trajectory(runs["resnet34C-seed0"])) == [
        "arch: resnet50 -> resnet34",
        "shortcut: default -> C",
    ]


def test_ensemble_of_table_5() -> None:
    """The paper: "six models of different depth (only with two 152-layer ones)"; the other four it does not name."""
    assert [(spec.arch, spec.seed) for spec in find("table5").runs] == [
        ("resnet34", 0), ("resnet50", 0), ("resnet101", 0), ("resnet101", 1), ("resnet152", 0), ("resnet152", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_a_run_is_what_its_options_give(scale: float) -> None:
    """`resolve` parses a recipe once for all its runs; the launchers parse the options of each run."""
    reader = parser("Reads options.", "none")
    for name in names():
        for spec in {find(name).runs[0], find(name).runs[-1]}:
            places = ("elsewhere", None) if spec.seed else (None, "my/runs")
            assert resolve(spec, *places, scale) == parse(reader, arguments(spec, *places, scale))[0]


def test_an_edited_recipe_is_read_again(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    spec = RunSpec(config=base, arch="resnet18")
    for batch in (64, 128):
        base.write_text(f"batch: {batch}\n")
        assert resolve(spec).batch == batch


def test_deep_cifar_nets_warm_up() -> None:
    """Section 4.2: 0.01 until the training error is below 80%, for ResNet-110; 1202 'is trained as described above'."""
    table = find("table6")
    assert len(next(row for row in table.rows if row.label == "ResNet-110").runs) == 5
    for spec in table.runs:
        schedule = resolve(spec).schedule
        assert (schedule.start_lr, schedule.steps) == (
            0.01 if "110" in spec.arch or "1202" in spec.arch else None,
            (32_000, 48_000),
        )
        assert schedule.start_until_error == 80


def test_scale_shortens_all_that_is_counted_in_iterations(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(
        "iterations: 1000\nrecompute_bn_images: 500\nschedule: {kind: steps, steps: [500, 750], warmup_iterations: 40}\n"
        "evaluation: {every: 100}\ncheckpoint: {every: 200, keep_every: 300}\ntracking: {log_every: 30}\n"
        "augment: {stages: [{until: 300, crop: 128, short_side: [146, 274]}]}\n"
    )
    spec = RunSpec(config=base, arch="resnet18", seed=3)
    whole, short = resolve(spec), resolve(spec, scale=0.1)
    assert differences(to_plain(whole), to_plain(short)) == [
        "augment.stages: [{'until': 300, 'crop': 128, 'short_side': [146, 274]}] -> "
        "[{'until': 30, 'crop': 128, 'short_side': [146, 274]}]",
        "checkpoint.every: 200 -> 20",
        "checkpoint.keep_every: 300 -> 30",
        "evaluation.every: 100 -> 10",
        "iterations: 1000 -> 100",
        "name: resnet18-seed3 -> resnet18-seed3-scale0.1",
        "recompute_bn_images: 500 -> 50",
        "schedule.steps: [500, 750] -> [50, 75]",
        "schedule.warmup_iterations: 40 -> 4",
        "tracking.log_every: 30 -> 10",
    ]
    assert resolve(spec, scale=1.0) == whole
    least = resolve(spec, scale=0.004)
    assert (least.iterations, least.checkpoint.every, least.evaluation.every) == (4, 10, 10)
    with pytest.raises(UserError, match=r"too few .* give at least 0\.004"):
        resolve(spec, scale=0.003)


@pytest.mark.parametrize("scale", [0, -1, 1.01, float("nan"), float("inf")])
def test_scale_out_of_range(scale: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        arguments(RunSpec(config=CONFIGS / "demo.yaml", arch="resnet8"), scale=scale)


def test_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL)
    mine = find(str(file))
    assert (mine.name, mine.rows[0].paper, mine.data) == ("mine", {"top1_error": 8.0}, "demo/dataset")
    assert [spec.name(0.5) for spec in mine.runs] == [
        "resnet8-seed0-scale0.5", "resnet8-seed1-scale0.5", "plain8-seed0-scale0.5"
    ]  # fmt: skip
    assert [row.label for row in mine.only(["PLAIN"]).rows] == ["plain"]
    # A base config of that name beside it is meant rather than the one in configs/.
    (tmp_path / "demo.yaml").write_text("data: elsewhere\n")
    assert find(str(file)).data == "elsewhere"


WRONG = {
    "key": ("title:", "tilte:", r"unknown key 'tilte' in .*: did you mean 'title'\?"),
    "row's key": ("label: plain", "lable: plain", r"unknown key 'rows\[1\]\.lable' in .*'label'"),
    "net's key": ("seeds:", "seed:", r"unknown key 'rows\[0\]\.nets\[0\]\.seed' in .*'seeds'"),
    "figure": ("top1_error", "top1", r"unknown key 'rows\[0\]\.paper\.top1' .*'top1_error'"),
    "missing": ("title: Two small nets", "", r"'title' is missing in .*: add it"),
    "type": ("seeds: [0, 1]", "seeds: [0, one]", r"seeds\[1\]' in .* is 'one': give a whole number"),
    "measure": ("measure: error", "measure: errors", r"'measure' in .* is 'errors': did you mean 'error'"),
    "protocol": ("[center]", "[centre]", r"there is no protocol 'centre': did you mean 'center'"),
    "no protocol": ("[center]", "[]", "need protocols"),
    "net": ("arch: plain8", "arch: plain9", "no net named 'plain9'"),
    "config": ("demo.yaml", "dmo.yaml", r"the config 'dmo.yaml' of .* is neither beside it"),
    "override": ("arch: plain8", "arch: plain8, overrides: {bacth: 3}", r"plain8-seed0 of .* cannot be: .*--batch"),
    "reserved": ("arch: plain8", "arch: plain8, overrides: {seed: 3}", "must not hold 'seed'"),
    "same label": ("label: plain", "label: A net", "two rows of .* are labelled 'A net'"),
    "same name": ("arch: plain8", "arch: resnet8, overrides: {batch: 32}", "two different runs .* resnet8-seed0: .*variant"),
    "no nets": ("nets: [{arch: plain8}]", "nets: []", r"'rows\[1\]\.nets' in .* is empty: list at least one"),
    "axes of a table": ("rows:", "figure: {x_limits: [0, 1]}\nrows:", "'figure' in .* needs curves"),
    "axes": ("rows:", "figure: {x_limits: [0, 1, 2]}\nrows:", r"'figure\.x_limits' in .*\[0, 1, 2\]: give fewer values"),
    "axes' key": ("rows:", "figure: {xlimits: [0, 1]}\nrows:", r"unknown key 'figure\.xlimits' in .*'x_limits'"),
    "other method": ("rows:", "others: [{name: A, top: 8}]\nrows:", r"unknown key 'others\[0\]\.top' in .*'top1'"),
    "1-crop": ("paper: {top1_error: 8}", "one_crop: {top1_error: 8}", r"'rows\[0\]\.one_crop' in .* needs measure error"),
    "published row": (
        "rows:", "published: [{name: A, source: B, errors: [{row: plane, protocol: center}]}]\nrows:",
        r"'published\[0\]\.errors\[0\]\.row' in .* names 'plane': did you mean 'plain'",
    ),
    "published protocol": (
        "rows:", "published: [{name: A, source: B, errors: [{row: plain, protocol: ten-crop}]}]\nrows:",
        r"'published\[0\]\.errors\[0\]\.protocol' in .* is 'ten-crop'",
    ),
    "published curves": (
        "measure: error\nprotocols: [center]", "measure: curve\npublished: [{name: A, source: B, errors: []}]",
        "'published' in .* needs a table of single nets",
    ),
    "two ensembles": ("measure: error", "measure: ensemble", "has 2 ensembles: give each an experiment file"),
    "not YAML": ("title:", "title: [", "is not YAML"),
    "no mapping": ("{label: plain, nets: [{arch: plain8}]}", "3", r"'rows\[1\]' in .* is 3: give 'key: value' lines"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_files(mistake: str, tmp_path: Path) -> None:
    old, new, sentence = WRONG[mistake]
    text = SMALL
    assert old in text
    file = tmp_path / "wrong.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        read_experiment(file)


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ("{panels: [{title: T, rows: [A nett]}]}", r"'figure\.panels\[0\]\.rows' in .* names 'A nett': .*'A net'"),
        ("{panels: [{title: T, row: [A net]}]}", r"unknown key 'figure\.panels\[0\]\.row' in .*'rows'"),
        (
            "{panels: [{title: T, rows: [plain], kind: val}]}",
            r"'figure\.panels\[0\]\.kind' in .* is 'val': .*test, train",
        ),
        ("{marks_from: tabel6}", r"'figure\.marks_from' in .* is 'tabel6': did you mean 'table6'"),
    ],
)
def test_wrong_figures(figure: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    curves = SMALL.replace("measure: error\nprotocols: [center]", f"measure: curve\nfigure: {figure}")
    file.write_text(curves)
    with pytest.raises(UserError, match=sentence):
        read_experiment(file)


def test_variant_tells_two_recipes_apart(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(SMALL.replace("arch: plain8", "arch: resnet8, variant: small, overrides: {batch: 32}"))
    last = read_experiment(file).runs[-1]
    assert (last.name(), resolve(last).batch) == ("resnet8-seed0-small", 32)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"there is no experiment 'tabel6': did you mean 'table6'"):
        find("tabel6")
    with pytest.raises(UserError, match=r"table2 has no row 'ResNet-19': did you mean .*'ResNet-18'"):
        find("table2").only(["ResNet-19"])
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        find("nowhere.yaml")
