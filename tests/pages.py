"""The documents in git: their commands, inline code, links and paths, and which of those lead nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.helpers import ROOT

SHELL = ("", "sh", "bash", "shell", "console")  # languages of fenced blocks that hold commands
FOLDERS = (".ci", "bench", "configs", "data_prep", "docs", "launch", "paper", "pipeline", "tests")
IN_FOLDERS = re.compile(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
# FILE.py:Class.method
NAME_IN_FILE = re.compile(rf"((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\.py):([A-Za-z_][\w.]*)")
MADE = {  # paths that a command makes, and git does not have
    "configs/rates.yaml": "bench/step.py stores its rates there",
    "configs/loader.yaml": "pipeline/tune.py stores there what it found",
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
                yield from ((line.strip().removeprefix("$ "), False) for line in joined(block))
        yield from ((code.removeprefix("$ "), True) for code in self.inline)

    def links(self) -> list[str]:
        return re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", self.prose))


def joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def read(page: Path) -> Page:
    return Page(page)


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


def paths(page: Page) -> list[str]:
    """Words of inline code that are paths of the repository by their first folder."""
    words = [word for code in page.inline for word in code.split()]
    return [word.rstrip("/") for word in words if IN_FOLDERS.fullmatch(word)]


def exists(path: str) -> bool:
    return path in files() or path in MADE or ("*" in path and any(ROOT.glob(path)))


def names_in_files(page: Page) -> list[tuple[str, str]]:
    """(file, name) of every `FILE.py:NAME` in inline code."""
    words = [word for code in page.inline for word in code.split()]
    return [(found[1], found[2]) for word in words if (found := NAME_IN_FILE.fullmatch(word))]


@cache
def defined(file: str) -> frozenset[str]:
    """The classes, functions and values of a module, and those of its classes as Class.name; none where it is missing."""
    path = ROOT / file
    return frozenset(_defined(ast.parse(path.read_text()), "")) if path.is_file() else frozenset()


def _defined(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in scope.body:
        match node:
            case ast.ClassDef(name=name):
                yield prefix + name
                yield from _defined(node, f"{prefix}{name}.")
            case ast.FunctionDef(name=name):
                yield prefix + name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name
