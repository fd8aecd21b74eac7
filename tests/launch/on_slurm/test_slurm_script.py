"""What is asked of SLURM: time limits, the site's file, and the script, compared with what a real sbatch call receives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from launch import slurm, slurm_command
from launch.on_slurm.allocation import Allocation, minutes, resolve
from launch.site import read_site
from pipeline.base.command import UserError
from pipeline.models.resnet import build


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("2-12:30", 3630), ("1-00:00:01", 1441), ("0:59", 1)],
)
def test_time_limits_as_sbatch_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "1d", "-5", "1 --nodes=9"])
def test_what_is_not_a_time_limit(text: str) -> None:
    with pytest.raises(UserError, match="time limit"):
        minutes(text)


def test_command_line_overrides_site_overrides_defaults(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\ngpus_per_node: 4\ntime: '2:00:00'\nsetup: ['module load cuda']\n")
    allocation = resolve({"gpus_per_node": 2, "nodes": 3}, read_site(site))
    assert (allocation.partition, allocation.gpus_per_node, allocation.minutes) == ("gpu", 2, 120)
    assert (allocation.ranks, allocation.cpus_per_gpu) == (6, Allocation().cpus_per_gpu)
    assert allocation.setup == ("module load cuda",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("partiton: gpu", "did you mean 'partition'"),
        ("nodes: many", "give a whole number"),
        ("nodes: true", "give a whole number"),
        ("- a", "no 'key: value' lines"),
        ("a: [", "not YAML"),
        ("setup: ['a\\nb', \"c\\nd\"]", "line break"),
    ],
)
def test_site_files_that_do_not_fit(tmp_path: Path, text: str, expected: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_site(site)


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "a\nrm -rf /"},
        {"qos": "$(id)"},
        {"account": "a'b"},
        {"constraint": "x;y"},
        {"nodes": 0},
        {"gpus_per_node": -1},
        {"time": "1", "signal_delay": 60},
    ],
)
def test_allocations_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        resolve(options, {})


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an sbatch that keeps the file it is handed as `received` and its environment as
    `environment`, or fails by `refusal`."""
    commands, folder = tmp_path / "bin", tmp_path / "here"
    commands.mkdir()
    folder.mkdir()
    (commands / "sbatch").write_text(
        f"#!/bin/sh\n[ -e {folder}/refusal ] && {{ cat {folder}/refusal >&2; exit 1; }}\n"
        f'cat "$1" >{folder}/received\nenv >{folder}/environment\necho Submitted batch job 77\n'
    )
    (commands / "srun").write_text("#!/bin/sh\n")
    (commands / "scontrol").write_text("#!/bin/sh\n")  # knows of no partitions: the real one is asked by tests/cluster
    for one in commands.iterdir():
        one.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.chdir(folder)
    return folder


def test_short_command_is_enough(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["--arch", "resnet152", "--nodes", "4", "--dry-run", "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --job-name=resnet152-seed0",
        "#SBATCH --requeue",
        "arch: resnet152",
        "batch: 256",
    ):
        assert line in printed
    assert any(line.startswith("Nothing was submitted") for line in printed)
    assert json.loads(printed[-1])["ranks"] == 32
    assert list(stand_in.iterdir()) == []


def test_dry_run_is_what_sbatch_gets(stand_in: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", str(tiny), "--nodes", "2", "--gpus-per-node", "0", "--qos", "high", "--assume-shared"]
    assert slurm.main([*command, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert list(stand_in.iterdir()) == []
    assert slurm.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["job_id"] == "77"
    received = (stand_in / "received").read_text()
    assert received in dry
    assert subprocess.run(["bash", "-n"], input=received, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ([], "cuda"),
        (["--device", "cpu"], "cpu"),
        (["--device", "cuda"], "cuda"),
        (["--gpus-per-node", "0"], "cpu"),
        (["--gpus-per-node", "0", "--device", "cuda"], "cuda"),
        (["--cluster", "local"], "auto"),  # torch sees no GPU here
        (["--cluster", "local", "--gpus-per-node", "0"], "cpu"),
        (["--cluster", "debug", "--gpus-per-node", "0"], "cpu"),
    ],
)
def test_a_job_uses_gpus_where_it_asks_for_them_and_only_there(
    stand_in: Path,
    options: list[str],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(slurm, "gpus", lambda: 0)
    assert slurm.main(["--arch", "resnet50", "--dry-run", *options]) == 0
    assert f"device: {device}" in capsys.readouterr().out.splitlines()


def test_a_site_gets_what_it_demands(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written as it is typed to sbatch, in the site's file, and both together."""
    (stand_in / "site.yaml").write_text(
        "sbatch: {exclude: 'n[1-2]', mail-type: END, exclusive: true, reservation: old}\n"
    )
    words = ["--gpus-per-node", "a100:4", "--mem-per-cpu", "4G", "--reservation", "school", "--site", "site.yaml"]
    assert slurm.main(["--arch", "resnet18", "--nodes", "2", *words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    asked = [line.removeprefix("#SBATCH --") for line in printed.splitlines() if line.startswith("#SBATCH")]
    wanted = [
        "exclude='n[1-2]'",
        "mail-type=END",
        "exclusive",
        "reservation=school",
        "gpus-per-node=a100:4",
        "mem-per-cpu=4G",
    ]
    assert set(wanted) <= set(asked)
    assert "2 nodes, 8 ranks" in printed
    assert not [line for line in asked if line.startswith(("mem=", "wckey", "gres"))]


@pytest.mark.parametrize("command", ["training", "evaluation", "one command"])
def test_a_job_is_submitted_from_inside_a_job(
    stand_in: Path, tiny: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch gets nothing of the outer job, whatever is submitted, and this process keeps it."""
    outer = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "4000",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SRUN_DEBUG": "3",
    }
    for name, value in {**outer, "SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "1"}.items():
        monkeypatch.setenv(name, value)
    common = ["--gpus-per-node", "1", "--assume-shared"]
    if command == "one command":
        assert slurm_command.main(["--name", "scores", "--folder", "scores", *common, "--", "true"]) == 0
    elif command == "training":
        assert slurm.main(["--config", str(tiny), *common]) == 0
    else:
        data = yaml.safe_load(tiny.read_text())["data"]
        torch.save(build("resnet8", classes=10).state_dict(), "net.pt")
        model = ["--weights", "net.pt", "--arch", "resnet8", "--preprocessing", "ours", "--data", data]
        assert slurm.main([*common, "--evaluate", *model]) == 0
    names = {line.partition("=")[0] for line in (stand_in / "environment").read_text().splitlines()}
    assert [name for name in names if name.startswith(("SLURM", "SRUN", "SBATCH"))] == ["SBATCH_PARTITION"]
    assert {name: os.environ[name] for name in outer} == outer


def test_weights_that_do_not_fit_are_refused_before_they_wait(stand_in: Path, tiny: Path) -> None:
    data = yaml.safe_load(tiny.read_text())["data"]
    torch.save(build("resnet8", classes=10).state_dict(), "net.pt")
    for file, arch, sentence in (
        ("none.pt", "resnet8", "no weights file"),
        ("net.pt", "resnet14", "not those of resnet14"),
    ):
        with pytest.raises(UserError, match=sentence):
            words = ["--weights", file, "--arch", arch, "--preprocessing", "ours", "--data", data]
            slurm.main(["--assume-shared", "--evaluate", *words])
    assert not (stand_in / "received").exists()


def test_without_slurm_there_is_no_sbatch_to_hand_on_to(stand_in: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match=r"asks nothing of sbatch.*reservation=school"):
        slurm.main(["--config", str(tiny), "--cluster", "local", "--reservation", "school"])


def test_a_folder_whose_name_sbatch_reads_otherwise(stand_in: Path) -> None:
    for folder in ("a%j", "a\\b"):
        with pytest.raises(UserError, match="which sbatch would read otherwise"):
            slurm.main(["--runs", folder, "--dry-run"])


def test_a_job_waits_for_others_by_one_option(stand_in: Path) -> None:
    words = ["--name", "scores", "--folder", "scores", "--dependency", "singleton", "--assume-shared"]
    with pytest.raises(UserError, match="leave sbatch's dependency out"):
        slurm_command.main([*words, "--after", "77", "--", "true"])
    assert slurm_command.main([*words, "--", "true"]) == 0
    assert "#SBATCH --dependency=singleton" in (stand_in / "received").read_text().splitlines()


def test_a_refusal_of_sbatch_is_shown(stand_in: Path, tiny: Path) -> None:
    (stand_in / "refusal").write_text("sbatch: error: invalid partition specified: nix\n")
    with pytest.raises(UserError, match="invalid partition specified: nix"):
        slurm.main(["--config", str(tiny), "--gpus-per-node", "1", "--partition", "nix", "--assume-shared"])


def test_an_answer_without_a_job_is_not_called_a_refusal(stand_in: Path, tiny: Path) -> None:
    for answer in ("welcome to the cluster", "\\377"):
        (stand_in.parent / "bin" / "sbatch").write_text(f"#!/bin/sh\nprintf '{answer}'\n")
        with pytest.raises(UserError, match=r"did not answer with the number of a job.*squeue --me"):
            slurm.main(["--config", str(tiny), "--gpus-per-node", "1", "--assume-shared"])
    assert not list((stand_in / "runs").rglob("*.pkl"))


def test_without_slurm_it_says_so(stand_in: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="there is no SLURM on this machine"):
        slurm.main(["--config", str(tiny), "--gpus-per-node", "1"])
    assert list(stand_in.iterdir()) == []


def test_plan_follows_the_ring_model(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of the project's performance notes: fp32 gradients of ResNet-50/101/152 at 100 Gb/s take 16.4/28.5/38.5 ms."""
    for arch, milliseconds in (("resnet50", 16.4), ("resnet101", 28.5), ("resnet152", 38.5)):
        assert slurm.main(["--arch", arch, "--nodes", "4", "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out.splitlines()[-1])["plan"]
        by_nodes = {row["nodes"]: row for row in plan}
        ranks = 32
        latency = 1000 * 2 * (ranks - 1) * 20e-6
        assert by_nodes[4]["all_reduce_ms"] - latency == pytest.approx(milliseconds * (ranks - 1) / ranks, rel=0.01)
        assert by_nodes[1]["efficiency"] == 1
        assert all(row["efficiency"] <= 1.001 for row in plan)
    # Twice the network: half the time on the wire. A measured rate is taken as it is.
    assert (
        slurm.main(
            [
                "--nodes",
                "4",
                "--dry-run",
                "--json",
                "--network-gbits",
                "200",
                "--images-per-second",
                "1000",
                "--arch",
                "resnet50",
            ]
        )
        == 0
    )
    row = {row["nodes"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["plan"]}[4]
    assert row["all_reduce_ms"] - latency == pytest.approx(16.4 / 2 * 31 / 32, rel=0.01)
    assert row["compute_ms"] == pytest.approx(8.0)
    assert row["gpu_hours"] == pytest.approx(row["hours"] * 32)


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--ensemble"], "python -m pipeline.experiment table5 --launcher slurm"),
        (["--array-of-archs", "resnet18,resnet34"], "python launch/slurm.py --arch $arch"),
        (["--array-of-archs=resnet18,resnet34", "--dry-run"], "python launch/slurm.py --arch $arch"),
    ],
)
def test_options_that_are_gone_name_what_does_the_same(stand_in: Path, words: list[str], instead: str) -> None:
    with pytest.raises(UserError) as caught:
        slurm.main(["--nodes", "1", *words])
    sentence = str(caught.value)
    assert sentence.startswith(f"{words[0].partition('=')[0]} is gone") and instead in sentence and "\n" not in sentence
    assert list(stand_in.iterdir()) == []


@pytest.mark.parametrize("option", ["--runs", "--data"])
def test_folders_that_would_be_lines_of_the_script(stand_in: Path, option: str) -> None:
    with pytest.raises(UserError, match="control characters") as caught:
        slurm.main([option, "a\n#SBATCH --comment=x", "--dry-run"])
    assert "\n" not in str(caught.value)


def test_what_waits_for_a_job_that_fails_leaves_the_queue(stand_in: Path) -> None:
    words = ["--name", "scores", "--folder", "scores", "--after", "77,78", "--gpus-per-node", "0", "--assume-shared"]
    assert slurm_command.main([*words, "--", "true"]) == 0
    lines = (stand_in / "received").read_text().splitlines()
    assert "#SBATCH --dependency=afterok:77:78" in lines and "#SBATCH --kill-on-invalid-dep=yes" in lines


def test_help_of_one_task_shows_no_option_without_effect() -> None:
    text = slurm_command.options().format_help()
    assert "--partition" in text and "--gpus-per-node" in text
    assert not [name for name in ("--nodes", "--tasks-per-node", "--network-gbits", "--rates") if name in text]
