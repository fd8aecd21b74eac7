"""The commands of a line of shell, parsed by their own parsers and not run.

Placeholders: `...` as a word stands for further words, which may be required ones; as an option's value `...`, one
capital letter and `$name` stand for a value that fits; words in capitals are accepted where the command takes any text.
Inline code that names a command without words is a mention.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from launch.on_slurm.sbatch import spelled
from pipeline.base.command import UserError
from tests import commands
from tests.helpers import ROOT
from tests.pages import IN_FOLDERS, exists

PLACEHOLDER = re.compile(r"\.\.\.|[A-Z]")
NOT_OURS = ("pip", "venv")  # modules behind `python -m`
PROGRAM = re.compile(r"(\S*/)?(python[\d.]*|pytest|bash|sh)|torchrun|make")
SCRIPT = re.compile(r"(\./)?\w+/\S+\.py")
FITTING = {"--config": "configs/imagenet.yaml", "--protocol": "center"}  # values of options that do not take "1"
STARTERS = ("exec", "nohup", "sbatch", "srun", "time")  # programs that start the script behind them


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
    words = spelled(words) if module in ("launch.slurm", "launch.slurm_command") else words
    flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    filled: list[str] = []
    for word in words:
        before = filled[-1] if filled else ""
        if PLACEHOLDER.fullmatch(word) and before.startswith("--") and "=" not in before and before not in flags:
            filled.append(FITTING.get(before, "1"))
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


def import_commands() -> None:
    """Import what the parsers need, so that no case is charged for it (tests/budget.py)."""
    for module in commands.commands():
        if module.startswith(("pipeline.", "launch.")):
            commands.parser_of(module, "--help")
    import bench.evaluate  # noqa: F401 - torchvision
