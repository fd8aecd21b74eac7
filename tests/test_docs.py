"""What the documents say can be typed and followed: commands, make targets, options, config keys, links and paths."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from launch.on_slurm.sbatch import PREFIX, WORDS
from pipeline.base.words import ALIASES, MEANINGS
from pipeline.run.options import key_names
from tests import commands
from tests.command_lines import checked, import_commands
from tests.helpers import ROOT
from tests.pages import (
    MADE,
    PAGES,
    Page,
    broken_links,
    defined,
    exists,
    files,
    joined,
    name_of,
    names_in_files,
    paths,
    read,
)

# Programs with options of their own.
OTHERS = ("kill", "mlflow", "pip", "ray", "scancel", "scontrol", "sha256sum", "srun", "ssh")
OPTIONS_OF_OTHERS = {
    "--app-name": "mlflow server",
    "--ten-crop--best2-by-top-1": "part of a file name",
    "--ensemble": "removed from launch/slurm.py: CHANGELOG.md",
    "--array-of-archs": "removed from launch/slurm.py: CHANGELOG.md",
}


@pytest.fixture(scope="module", autouse=True)
def _commands() -> None:
    import_commands()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_fit_their_parsers(page: Path) -> None:
    _, faults = checked(read(page).command_lines())
    assert not faults, f"{name_of(page)}:\n" + "\n".join(faults)


def test_many_commands_are_checked() -> None:
    """What finds the commands does not overlook them."""
    counts = {name_of(page): checked(read(page).command_lines())[0] for page in PAGES}
    assert sum(counts.values()) >= 90, counts
    rich = ("README.md", *(f"docs/{page}.md" for page in ("clusters", "data", "evaluation", "experiments", "training")))
    assert min(counts[name] for name in rich) >= 4, counts


def test_the_examples_of_every_help_fit() -> None:
    faults: list[str] = []
    for module, typed in commands.commands().items():
        if not typed.startswith("python bench") and commands.has_parser(module):
            parser = commands.parser_of(module, "--help")
            lines = f"{parser.description}\n{parser.epilog or ''}".splitlines()
            count, found = checked((line, False) for line in lines)
            faults += found
            assert count, f"the help of {typed} shows no example"
    assert not faults, "\n".join(faults)


def test_the_commands_of_configs_and_of_the_makefile_fit() -> None:
    comments = "\n".join(file.read_text() for file in sorted(ROOT.glob("configs/**/*.yaml")))
    lines = re.findall(r"^# +(python (?:\S| (?! ))+)", comments, re.MULTILINE)  # up to two spaces: explanations follow
    makefile = (ROOT / "Makefile").read_text()
    for name, default in re.findall(r"^(\w+) \?= (\d+)$", makefile, re.MULTILINE):
        makefile = makefile.replace(f"$({name})", default)
    recipes = joined(makefile.replace("$(BIN)/", ""))
    recipes = [
        re.sub(r"\$\(if \$\(\w+\),(--[^)]*?)( \$\(\w+\))?\)", lambda found: found[1] + (" X" if found[2] else ""), line)
        for line in recipes
    ]
    lines += [line.strip() for line in recipes if line.startswith("\tpython ")]
    count, faults = checked((line, False) for line in lines)
    assert not faults, "\n".join(faults)
    assert count >= 20, lines


# Options and config keys that are named alone


@cache
def option_names() -> frozenset[str]:
    """Of every command of the project, torchrun's too."""
    from torch.distributed.run import get_args_parser

    parsers = [
        parser
        for module in commands.commands()
        if commands.has_parser(module)
        for parser in commands.parsers_of(module).values()
    ]
    names = {
        name for parser in [*parsers, get_args_parser()] for action in parser._actions for name in action.option_strings
    }
    words = {word for one in MEANINGS for word in one.words.split()} | set(ALIASES)  # of other tools, answered here
    words |= set(WORDS)
    return frozenset(names | words | {f"--{key.replace('_', '-')}" for key in key_names()})


def unknown_options(page: Page) -> list[str]:
    codes = [code for code in page.inline if code.split()[0] not in OTHERS]
    named = {word for code in codes for word in re.findall(r"(?:^|(?<= ))--[a-z][\w.-]*\*?", code)}
    return [
        name for name in sorted(named)
        if name not in option_names() and name not in OPTIONS_OF_OTHERS and not name.startswith(PREFIX)
        and not (name.endswith("*") and any(known.startswith(name[:-1]) for known in option_names()))
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_are_named_exist(page: Path) -> None:
    assert not (unknown := unknown_options(read(page))), f"{name_of(page)} names {unknown}, which no command takes"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_config_keys_that_are_named_exist(page: Path) -> None:
    sections = {key.partition(".")[0] for key in key_names() if "." in key}
    named = [found[1] for code in read(page).inline if (found := re.fullmatch(r"(\w+\.\w+)(: .*)?", code))]
    unknown = [key for key in named if key.partition(".")[0] in sections and key not in key_names()]
    unknown = [key for key in unknown if not key.endswith((".json", ".yaml"))]
    assert not unknown, f"{name_of(page)} names {unknown}, which are no keys of the config: see --print-config"


# Links and paths


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not (broken := list(broken_links(page))), f"{name_of(page)}:\n" + "\n".join(broken)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    missing = sorted({path for path in paths(read(page)) if not exists(path)})
    assert not missing, f"{name_of(page)} names {missing}: not in git; a file that a command makes belongs into MADE"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_files_exist(page: Path) -> None:
    missing = [f"{file}:{name}" for file, name in names_in_files(read(page)) if name not in defined(file)]
    assert not missing, f"{name_of(page)} names {missing}: no such file, or nothing of that name in it"


def test_many_links_and_paths_are_checked() -> None:
    pages = [read(page) for page in PAGES]
    assert sum(len(names_in_files(page)) for page in pages) >= 40
    assert sum(len(page.links()) for page in pages) >= 30
    assert sum(len(paths(page)) for page in pages) >= 50
    assert not (needless := [path for path in MADE if path in files()]), f"{needless} are in git: take them out of MADE"


# The checks of links and options themselves, on mistakes


def test_a_false_link_path_option_and_heading_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "not-there.md"
    text = (
        "# One `two` (three)\n[a](data.md) [b](dta.md) ![c](images/none.png) [d](#one-two-three) [e](#one) "
        "[f](clusters.md#torchrun) [g](clusters.md#torchruns) [h](https://example.org/x) `[i](no.md)`\n"
        "`pipeline/train.py` `pipeline/trian.py` `configs/rates.yaml` `tests/*.py` `runs/x` `docs/`\n"
        "`--procs 2` `--prox` `--loader.*` `--looder.*` `ray start --head`\n"
        "`tests/pages.py:Page.links` `tests/pages.py:Page.linxs` `tests/pagez.py:Page` `tests/pages.py:MADE`\n"
        "```\n[j](none.md) `launch/none.py`\n```\n"
    )
    (tmp_path / "page.md").write_text(text)
    for module in ("tests.pages", __name__):
        monkeypatch.setattr(f"{module}.read", lambda one: Page(tmp_path / "page.md" if one == page else one))
    broken = [fault.partition(":")[0] for fault in broken_links(page)]
    assert broken == ["dta.md", "images/none.png", "#one", "clusters.md#torchruns"]
    assert [path for path in paths(read(page)) if not exists(path)] == ["pipeline/trian.py"]
    assert unknown_options(read(page)) == ["--looder.*", "--prox"]
    missing = [f"{file}:{name}" for file, name in names_in_files(read(page)) if name not in defined(file)]
    assert missing == ["tests/pages.py:Page.linxs", "tests/pagez.py:Page"]
