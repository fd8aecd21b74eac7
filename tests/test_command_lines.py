"""The check of command lines (tests/command_lines.py) on mistakes, on sound shell and on placeholders."""

from __future__ import annotations

import pytest

from tests.command_lines import checked, import_commands
from tests.helpers import ROOT


@pytest.fixture(scope="module", autouse=True)
def _commands() -> None:
    import_commands()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("python launch/slurm.py --node 4", "--node is not an option: did you mean '--nodes'"),
        ("python launch/local.py --config configs/demo.yaml --procs two", "procs"),
        ("python launch/local.py --batch x", "batch does not fit"),
        ("python launch/local.py --config configs/missing.yaml", "configs/missing.yaml"),
        ("for n in 1 2; do python launch/local.py --prox $n; done", "--prox is not an option"),
        ("python launch/slurm.py --nodes 1 --evaluate RUN --protocols center", "--protocols is not an option"),
        ("python launch/ray_train.py --nodes 1 --evaluate RUN", "--nodes is not an option"),
        ("torchrun --nproc-per-node 8 ... -m pipeline.train --config ... --bacth 3", "--bacth is not an option"),
        ("python -m pipeline.experiment table3 --launcher slurm -- --partitio gpu", "--partitio is not an option"),
        ("launch/slurm_command.py ... -- python -m pipeline.evaluate RUN --split", "--split"),
        ("launch/slurm_command.py --name scores -- COMMAND", "required: --folder"),
        ("python -m pipeline.mistakes", "required"),
        ("python -m pipeline.tracking close runs", "close"),
        ("python -m pipeline.tracking sync", "required: RUN"),
        ("torchrun --nproc-per-nude 8 -m pipeline.train", "unrecognized arguments: --nproc-per-nude"),
        ("python -m pipeline.submit 'RUN", "is no shell"),
        ("python -m pipeline.trane", "no command of this project"),
        ("python data_prep/shard_cifar.py A B", "no command of this project"),
        ("python bench/step.py --arch resnet50 --rounds some", "--rounds"),
        ("taskset -c 0,1 make dem", "the Makefile has no target 'dem'"),
        ("make chaos KILL=5", "the Makefile has no variable 'KILL'"),
        ("make -j4 tset", "the Makefile has no target 'tset'"),
        ("python3.11 -m pipeline.train --bacth 3", "--bacth is not an option"),
        ("python -u ./launch/local.py --prox 3", "--prox is not an option"),
        ("./launch/local.py --prox 3", "--prox is not an option"),
        ("sbatch launch/slurm.py --nodez 3", "--nodez is not an option"),
        ("bash -c 'python -m pipeline.train --bacth 3'", "--bacth is not an option"),
        ("cat names | python launch/local.py --prox 3 > log", "--prox is not an option"),
        ("bash .ci/ruin", "there is no file '.ci/ruin'"),
        ("python -m pytest -q tests/nothing.py::test_x", "there is no file 'tests/nothing.py'"),
    ],
)  # fmt: skip
def test_a_false_command_is_found(line: str, sentence: str) -> None:
    _, faults = checked([(line, line.startswith("launch"))])
    assert len(faults) == 1 and sentence in faults[0], faults


def test_sound_shell_is_accepted() -> None:
    lines = [
        "python launch/local.py --config configs/demo.yaml --procs 2 | tee log",
        "python -u launch/local.py --config configs/demo.yaml --procs 2 > log 2>&1",
        "./launch/local.py --config configs/demo.yaml --procs 2 2>> log &",
        "make -j4 test && make -j 2 check",
        "bash .ci/run",
        "python3.11 -X dev -m pytest tests/test_docs.py -k 'not links' tests/launch/",
    ]
    assert checked((line, False) for line in lines) == (7, [])


def test_placeholders_are_accepted() -> None:
    lines = [
        "launch/local.py --procs N",
        "python launch/slurm.py --nodes N --mem-gb ... ... --dry-run",
        "python -m pipeline.submit RUN ...",
        "launch/slurm_command.py ... -- COMMAND",
        "python -m pipeline.mistakes RUN|SCORES  # what's wrong",
        "python -m pipeline.mistakes",
    ]
    assert checked((line, True) for line in lines) == (5, [])
