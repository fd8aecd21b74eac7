"""What the documents say can be typed and followed: commands, make targets, options, config keys, links and paths.

Commands are parsed by their own parsers and not run. Placeholders: `...` as a word stands for further words, which
may be required ones; as an option's value `...`, one capital letter and `$name` stand for a value that fits; words in
capitals are accepted where the command takes any text. Inline code that names a command without words is a mention.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from pipeline.command import UserError
from pipeline.options import key_names
from tests import commands
from tests.helpers import ROOT

SHELL = ("", "sh", "bash", "shell", "console")  # languages of fenced blocks that hold commands
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z]")
FOLDERS = (".ci", "bench", "configs", "data_prep", "docs", "launch", "pipeline", "tests")
IN_FOLDERS = re.compile(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
MADE = {  # paths that a command makes, and git does not have
    "configs/rates.yaml": "bench/step.py stores its rates there",
}
NOT_OURS = ("pip", "venv")  # modules behind `python -m`
PROGRAM = re.compile(r"(\S*/)?(python[\d.]*|pytest|bash|sh)|torchrun|make")
SCRIPT = re.compile(r"(\./)?\w+/\S+\.py")
STARTERS = ("exec", "nohup", "sbatch", "srun", "time")  # programs that start the script behind them
OTHERS = (
    "kill",
    "mlflow",
    "pip",
    "ray",
    "scancel",
    "scontrol",
    "sha256sum",
    "ssh",
)  # programs with options of their own
OPTIONS_OF_OTHERS = {
    "--app-name": "mlflow server",
    "--ten-crop--best2-by-top-1": "part of a file name",
}


@cache
def files() -> frozenset[str]:
    """Files of the repository, with new ones that git does not ignore; their folders too."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        known = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        found = [path for path in known if path.parts[0] != ".venv"]
    return frozenset(str(one) for path in found for one in (path, *path.parents))


PAGES = [ROOT / name for name in sorted(files()) if re.fullmatch(r"(docs/)?[^/]+\.md", name)]


class Page:
    """A document: its fenced blocks, its inline code, and the rest."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        fences = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
        self.blocks = [(found[2], found[3]) for found in fences.finditer(text)]
        self.prose = fences.sub("", text)
        self.inline = [" ".join(code.split()) for code in re.findall(r"`([^`]*[^`\s][^`]*)`", self.prose)]

    def command_lines(self) -> Iterator[tuple[str, bool]]:
        """(line, whether it is inline code)."""
        for language, block in self.blocks:
            if language in SHELL:
                yield from ((line.strip().removeprefix("$ "), False) for line in _joined(block))
        yield from ((code.removeprefix("$ "), True) for code in self.inline)

    def links(self) -> list[str]:
        return re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", self.prose))


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def read(page: Path) -> Page:
    return Page(page)


# Commands


def invocations(line: str) -> list[list[str]]:
    """The commands of a line of shell: from a PROGRAM on, or from a Python file that stands first."""
    if not re.search(r"python|pytest|torchrun|\b(make|bash|sh)\b|\.py\b", line):
        return []
    plain = re.sub(r"(?<=\s)\d(?=>)", "", re.sub(r"\$\w+", "1", line))
    reader = shlex.shlex(plain, posix=True, punctuation_chars=";&|<>")
    reader.whitespace_split = True
    found: list[list[str]] = []
    for separates, group in itertools.groupby(without_redirections(reader), lambda word: set(word) <= set(";&|")):
        words = [] if separates else list(group)
        script_at = len(words) if words and words[0] in STARTERS else 1  # a script stands before this place
        for at, word in enumerate(words):
            if PROGRAM.fullmatch(word) or (at < script_at and SCRIPT.fullmatch(word)):
                found.append(words[at:])
                break
    return found


def without_redirections(words: Iterable[str]) -> Iterator[str]:
    """Leaves out `>`, `2>&1` and `<` with the words behind them."""
    remaining = iter(words)
    for word in remaining:
        if set(word) <= set("<>&|") and set(word) & set("<>"):
            next(remaining, None)
        else:
            yield word


def is_mention(words: Sequence[str]) -> bool:
    """Whether inline code is a name alone: a file, a program, `python -m MODULE`."""
    return len(words) == 1 or (len(words) == 3 and words[1] == "-m" and commands.find(words[1:]) is not None)


def check(words: Sequence[str]) -> int:
    """How many commands were parsed: 0 for another program's. Raises UserError for what does not fit."""
    program, rest = Path(words[0]).name, list(words[1:])
    if program == "make":
        check_make(rest)
        return 1
    if program == "torchrun":
        return check_torchrun(rest)
    if program.endswith(".py"):
        return check_ours(words)
    if program in ("bash", "sh"):
        return check_shell(rest)
    if program == "pytest":
        return check_pytest(rest)
    while rest and re.fullmatch(r"-[uBEIOPsSXW]", rest[0]):
        rest = rest[2 if rest[0] in ("-X", "-W") else 1 :]
    if rest[:2] == ["-m", "pytest"]:
        return check_pytest(rest[2:])
    if not rest or rest[0] == "-c" or (rest[0] == "-m" and rest[1] in NOT_OURS):
        return 0
    if rest[:2] == ["-m", "torch.distributed.run"]:
        return check_torchrun(rest[2:])
    return check_ours(rest)


def check_ours(words: Sequence[str]) -> int:
    found = commands.find(words)
    if found is None:
        raise UserError(f"'{' '.join(words[:2])}' is no command of this project")
    module, rest = found
    if not commands.has_parser(module):
        return 0
    for separator, behind in (("--evaluate", check_evaluation), ("--", behind_dashes(module, rest))):
        if separator in rest and behind is not None:
            at = rest.index(separator)
            parse(module, rest[:at], separator)
            return 1 + behind(rest[at + 1 :])
    parse(module, rest)
    return 1


def parse(module: str, words: Sequence[str], separator: str = "") -> None:
    start = "--evaluate" if separator == "--evaluate" else "--help"
    parser = commands.parser_of(module, start)
    flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    filled: list[str] = []
    for word in words:
        before = filled[-1] if filled else ""
        if PLACEHOLDER.fullmatch(word) and before.startswith("--") and "=" not in before and before not in flags:
            filled.append("configs/imagenet.yaml" if before == "--config" else "1")
        elif word != "...":
            filled.append(word)
    commands.parse(parser, filled, complete="..." not in words)


def check_evaluation(words: Sequence[str]) -> int:
    return check_ours(["-m", "pipeline.evaluate", *words])


def behind_dashes(module: str, words: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """What reads the words behind `--`: a launcher's parser, or the command they are."""
    if module == "pipeline.experiment":
        launcher = words[words.index("--launcher") + 1] if "--launcher" in words else "local"
        file = {"local": "launch/local.py", "slurm": "launch/slurm.py", "ray": "launch/ray_train.py"}[launcher]
        return lambda behind: check_ours([file, *behind])
    if module == "launch.slurm_command":
        return lambda behind: 0 if list(behind) == ["COMMAND"] else check(behind)
    return None


def check_torchrun(words: Sequence[str]) -> int:
    from torch.distributed.run import get_args_parser

    own = commands.parse(get_args_parser(), [word for word in words if word != "..."])
    behind = words[words.index(own.training_script) + 1 :]
    return 1 + check_ours([*(["-m"] if own.module else []), own.training_script, *behind])


def check_shell(words: Sequence[str]) -> int:
    """The command behind -c, or the file of a script."""
    options = list(itertools.takewhile(lambda word: word.startswith("-"), words))
    behind = words[len(options) :]
    if behind and any(re.fullmatch(r"-\w*c", option) for option in options):
        return sum(check(inner) for inner in invocations(behind[0]))
    return check_files(behind[:1])


def check_pytest(words: Sequence[str]) -> int:
    return check_files(word.partition("::")[0] for word in words)


def check_files(words: Iterable[str]) -> int:
    """Each word that is a path of the repository by its first folder is there."""
    ours = [word.removeprefix("./").rstrip("/") for word in words if IN_FOLDERS.fullmatch(word.removeprefix("./"))]
    for path in ours:
        if not exists(path):
            raise UserError(f"there is no file '{path}'")
    return 1 if ours else 0


def check_make(words: Sequence[str]) -> None:
    """Each word is a target of the Makefile, or sets a variable of it."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if re.fullmatch(r"-j\d*|-[kns]|\d+", word):
            continue  # an option of make, or the number behind -j
        name, sets, _ = word.partition("=")
        if not re.search(rf"^{re.escape(name)} *{'[?:]?=' if sets else ':(?!=)'}", makefile, re.MULTILINE):
            raise UserError(f"the Makefile has no {'variable' if sets else 'target'} '{name}'")


def checked(lines: Iterable[tuple[str, bool]]) -> tuple[int, list[str]]:
    """(commands that were parsed, a sentence for each that does not fit)."""
    count, faults = 0, []
    for line, inline in lines:
        try:
            invoked = invocations(line)
        except ValueError as error:
            faults.append(f"`{line}` is no shell: {error}")
            continue
        for words in invoked:
            try:
                count += 0 if inline and is_mention(words) else check(words)
            except UserError as error:
                faults.append(f"`{' '.join(words)}`: {error}")
    return count, faults


@pytest.fixture(scope="module", autouse=True)
def _commands() -> None:
    """Imports what the pages need before the first case is timed."""
    for module in commands.commands():
        if module.startswith(("pipeline.", "launch.")):
            commands.parser_of(module, "--help")
    import bench.evaluate  # noqa: F401 - torchvision


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
    recipes = _joined((ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$(KILLS)", "50"))
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
    return frozenset(names | {f"--{key.replace('_', '-')}" for key in key_names()})


def unknown_options(page: Page) -> list[str]:
    codes = [code for code in page.inline if code.split()[0] not in OTHERS]
    named = {word for code in codes for word in re.findall(r"(?:^|(?<= ))--[a-z][\w.-]*\*?", code)}
    return [
        name for name in sorted(named)
        if name not in option_names() and name not in OPTIONS_OF_OTHERS
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


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+?) *$", read(page).prose, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    slugs = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain]
    return {f"{slug}-{slugs[:at].count(slug)}" if slug in slugs[:at] else slug for at, slug in enumerate(slugs)}


def broken_links(page: Path) -> Iterator[str]:
    for link in read(page).links():
        if re.match(r"[a-z]+:", link):
            continue  # another site
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if place and (not target.is_relative_to(ROOT) or str(target.relative_to(ROOT)) not in files()):
            yield f"{link}: there is no such file in git"
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            yield f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not (broken := list(broken_links(page))), f"{name_of(page)}:\n" + "\n".join(broken)


def paths(page: Page) -> list[str]:
    """Words of inline code that are paths of the repository by their first folder."""
    words = [word for code in page.inline for word in code.split()]
    return [word.rstrip("/") for word in words if IN_FOLDERS.fullmatch(word)]


def exists(path: str) -> bool:
    return path in files() or path in MADE or ("*" in path and any(ROOT.glob(path)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    missing = sorted({path for path in paths(read(page)) if not exists(path)})
    assert not missing, f"{name_of(page)} names {missing}: not in git; a file that a command makes belongs into MADE"


def test_many_links_and_paths_are_checked() -> None:
    pages = [read(page) for page in PAGES]
    assert sum(len(page.links()) for page in pages) >= 30
    assert sum(len(paths(page)) for page in pages) >= 50
    assert not (needless := [path for path in MADE if path in files()]), f"{needless} are in git: take them out of MADE"


# The checks themselves, on mistakes


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
        ("python -m pipeline.tracking open", "refused"),
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


def test_a_false_link_path_option_and_heading_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "not-there.md"
    text = (
        "# One `two` (three)\n[a](data.md) [b](dta.md) ![c](images/none.png) [d](#one-two-three) [e](#one) "
        "[f](clusters.md#torchrun) [g](clusters.md#torchruns) [h](https://example.org/x) `[i](no.md)`\n"
        "`pipeline/train.py` `pipeline/trian.py` `configs/rates.yaml` `tests/*.py` `runs/x` `docs/`\n"
        "`--procs 2` `--prox` `--loader.*` `--looder.*` `ray start --head`\n"
        "```\n[j](none.md) `launch/none.py`\n```\n"
    )
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(f"{__name__}.read", lambda one: Page(tmp_path / "page.md" if one == page else one))
    broken = [fault.partition(":")[0] for fault in broken_links(page)]
    assert broken == ["dta.md", "images/none.png", "#one", "clusters.md#torchruns"]
    assert [path for path in paths(read(page)) if not exists(path)] == ["pipeline/trian.py"]
    assert unknown_options(read(page)) == ["--looder.*", "--prox"]
