"""Options that are handed on to sbatch: their spellings, what stands above what, and what the launcher keeps to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch import slurm, slurm_command
from launch.on_slurm import sbatch
from launch.on_slurm.allocation import Allocation, resolve
from launch.ranks.command_line import EVALUATE, read_work
from launch.site import read_site
from pipeline.base.command import UserError


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--sbatch.reservation school", {"reservation": "school"}),
        ("--sbatch.reservation=school --nodes 4", {"reservation": "school"}),
        ("--sbatch reservation=school --sbatch=exclude=n1", {"reservation": "school", "exclude": "n1"}),
        ("--sbatch.mail_type END --sbatch.mail-user me@site.org", {"mail-type": "END", "mail-user": "me@site.org"}),
        ("--gres gpu:a100:4 -x n[1-3],n7 -w n9", {"gres": "gpu:a100:4", "exclude": "n[1-3],n7", "nodelist": "n9"}),
        ("--mem-per-cpu 4G --reservation school", {"mem-per-cpu": "4G", "reservation": "school"}),
        ("--exclusive --nodes 4", {"exclusive": True}),
        ("--nodes 4 --exclusive", {"exclusive": True}),
        ("--exclusive=user --hold", {"exclusive": "user", "hold": True}),
        ("--nice -5 --comment=a=b", {"nice": "-5", "comment": "a=b"}),
        ("--sbatch.exclusive true --sbatch.contiguous false", {"exclusive": True, "contiguous": False}),
        ("--sbatch.container-image docker://a/b:c", {"container-image": "docker://a/b:c"}),  # of a plug-in
    ],
)
@pytest.mark.parametrize("evaluate", [False, True])
def test_what_is_typed_is_what_sbatch_gets(words: str, options: dict[str, Any], evaluate: bool, run: Path) -> None:
    behind = [EVALUATE, str(run)] if evaluate else ["--arch", "resnet18"]
    asked = read_work([*words.split(), *behind], slurm.COMMAND_LINE)
    assert asked is not None
    assert sbatch.read(vars(asked[1])["sbatch"]) == options
    args = slurm_command.options().parse_args(sbatch.spelled(["--name", "a", "--folder", "b", *words.split()]))
    assert sbatch.read(args.sbatch) == options


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("arch: resnet18\n")
    return tmp_path / "run"


def test_a_word_of_sbatch_is_no_option_here() -> None:
    for parser in (slurm.COMMAND_LINE.training_parser(), slurm_command.options()):
        assert not set(sbatch.WORDS) & set(parser._option_string_actions)


@pytest.mark.parametrize("key", sorted(sbatch.TAKEN))
def test_what_the_launcher_sets_is_refused_with_its_own_option(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as asked:
        resolve({"sbatch": [f"{key.replace('-', '_')}=1"]}, {})
    (tmp_path / "site.yaml").write_text(f"sbatch: {{{key}: 1}}\n")
    with pytest.raises(UserError) as of_the_site:
        read_site(tmp_path / "site.yaml")
    assert f"sbatch's {key} is not handed on" in str(asked.value) and str(asked.value) in str(of_the_site.value)


def test_no_line_of_the_launchers_own_can_be_given_twice() -> None:
    """Whatever the script holds without a wish of its user is refused as one."""
    everything = Allocation(
        partition="a", account="a", qos="a", constraint="a", mem_gb=1, tasks_per_node=2, gpus_per_node="a100:2"
    ).sbatch_parameters("name")
    own = {key.replace("_", "-") for key in everything} | {"output", "error", "open-mode", "signal"}
    own -= {"wckey", "srun-args", "additional-parameters", "signal-delay-s"}
    assert own <= set(sbatch.TAKEN)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["x=node7"], "'x' is no option of sbatch: give its long name"),
        (["mail user=me"], "'mail user' is no option"),
        (["=7"], "'' is no option"),
        (["comment="], "give one line of text"),
        (["comment=a\nrm -rf ."], "give one line of text"),
        (["mem-per-cpu=1G", "mem-per-gpu=4G"], "both say how much memory"),
    ],
)
def test_what_cannot_be_handed_on(given: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        resolve({"sbatch": given}, {})
    assert "\n" not in str(caught.value)


def lines(allocation: Allocation) -> dict[str, Any]:
    """What the script asks of sbatch."""
    parameters = allocation.sbatch_parameters("name")
    own = parameters.pop("additional_parameters")
    return {key.replace("_", "-"): value for key, value in {**parameters, **own}.items() if value is not None}


@pytest.mark.parametrize(
    ("site", "given", "expected", "gpus"),
    [
        # The site's, and beside it or above it the user's.
        ({"sbatch": {"reservation": "a"}}, {"sbatch": ["exclude=n1"]}, {"reservation": "a", "exclude": "n1"}, 8),
        ({"sbatch": {"reservation": "a"}}, {"sbatch": ["reservation=b"]}, {"reservation": "b"}, 8),
        ({"sbatch": {"exclusive": True}}, {"sbatch": ["exclusive=false"]}, {"exclusive": None}, 8),
        # GPUs by either name: the user's stand in place of the site's, and never beside them.
        ({"sbatch": {"gres": "gpu:a100:4"}}, {}, {"gres": "gpu:a100:4", "gpus-per-node": None}, 4),
        ({"gpus_per_node": 8}, {"sbatch": ["gres=gpu:2"]}, {"gres": "gpu:2", "gpus-per-node": None}, 2),
        ({"sbatch": {"gres": "gpu:4"}}, {"gpus_per_node": "2"}, {"gres": None, "gpus-per-node": "2"}, 2),
        (
            {"sbatch": {"gres": "gpu:a100:4,scratch:100G"}},
            {"gpus_per_node": "0"},
            {"gres": "scratch:100G", "gpus-per-node": None},
            0,
        ),
        ({"sbatch": {"gres": "scratch:1"}}, {}, {"gres": "scratch:1", "gpus-per-node": 8}, 8),
        ({"sbatch": {"gres": "gpu:a:2(S:0-1),gpu:b,gres/gpu:1"}}, {}, {"gpus-per-node": None}, 4),
        ({"gpus_per_node": "a100:2,v100:2"}, {}, {"gpus-per-node": "a100:2,v100:2"}, 4),
        # Memory by either name.
        ({"mem_gb": 200.0}, {"sbatch": ["mem-per-cpu=4G"]}, {"mem": None, "mem-per-cpu": "4G"}, 8),
        ({"sbatch": {"mem-per-gpu": "9G"}}, {"mem_gb": 100.0}, {"mem": "100G", "mem-per-gpu": None}, 8),
        (
            {"sbatch": {"mem-per-gpu": "9G"}},
            {"sbatch": ["mem-per-cpu=1"]},
            {"mem-per-cpu": "1", "mem-per-gpu": None},
            8,
        ),
        # sbatch reads a backslash as one of the shell's.
        ({"sbatch": {"comment": "a\\b"}}, {}, {"comment": "a\\\\b"}, 8),
        ({}, {}, {"wckey": None, "requeue": True}, 8),
        ({"sbatch": {"wckey": "mine"}}, {}, {"wckey": "mine"}, 8),
    ],
)
def test_the_command_line_stands_above_the_site(
    site: dict[str, Any], given: dict[str, Any], expected: dict[str, Any], gpus: int
) -> None:
    allocation = resolve(given, site)
    asked = lines(allocation)
    assert {key: asked.get(key) for key in expected} == expected
    assert allocation.gpus == allocation.ranks_per_node == gpus or (gpus == 0 and allocation.ranks_per_node == 1)


def test_two_numbers_of_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="asks for 4 GPUs of each node, --gpus-per-node for 2"):
        resolve({"sbatch": ["gres=gpu:4"], "gpus_per_node": "2"}, {})


@pytest.mark.parametrize(
    ("gpus", "gres", "one"),
    [
        ("a100:4", None, {"gpus-per-node": "a100:1"}),
        (8, None, {"gpus-per-node": 1}),
        (0, None, {"gpus-per-node": None}),
        (None, "scratch:5,gpu:a100:4(S:0)", {"gres": "gpu:a100:1(S:0),scratch:5", "gpus-per-node": None}),
        (None, "gpu", {"gres": "gpu", "gpus-per-node": None}),
    ],
)
def test_one_task_takes_one_gpu_of_the_kind(gpus: int | str | None, gres: str | None, one: dict[str, Any]) -> None:
    asked = lines(
        resolve({"gpus_per_node": gpus, "sbatch": [f"gres={gres}"] if gres else [], "nodes": 3}, {}).with_one_task()
    )
    assert (asked["nodes"], asked["ntasks-per-node"]) == (1, 1)
    assert {key: asked.get(key) for key in one} == one


@pytest.mark.parametrize(
    "gpus", ["two", "", "a100", "a100:", "-1", "4,4", "gpu:a100:4", "a100:2,4", "1.5", "4\n5", True]
)
def test_numbers_of_gpus_that_are_none(gpus: str) -> None:
    with pytest.raises(UserError, match="--gpus-per-node is"):
        resolve({"gpus_per_node": gpus}, {})


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [(0, "0"), (200, "200G"), (187.5, "192000M"), (2e6, "2000000G"), (0.3, "308M"), (1e-9, "1M"), (1e20, f"{10**20}G")],
)
def test_memory_in_whole_units(gigabytes: float, expected: str) -> None:
    assert lines(Allocation(mem_gb=gigabytes))["mem"] == expected


@pytest.mark.parametrize(
    "values",
    [
        {"mem_gb": float("nan")}, {"mem_gb": -1.0}, {"mem_gb": float("inf")}, {"signal_delay": 65_536},
        {"images_per_second": 0.0}, {"network_gbits": float("nan")},
    ],
)  # fmt: skip
def test_numbers_that_sbatch_or_the_plan_cannot_take(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(UserError, match=name):
        Allocation(**values)
