"""What stands on which page of a PDF that Chromium printed, from the structure that it writes for screen readers.

Chromium's PDF library writes the structure's objects as plain text; only drawings are compressed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

HEADINGS = ("H1", "H2", "H3")
WHOLE = (*HEADINGS, "Caption", "TR", "Figure")  # must not be cut in two


@dataclass(frozen=True)
class Leaf:
    """A piece of content. path: (kind, object number) of the elements that hold it, outermost first. page: an object number."""

    path: tuple[tuple[str, int], ...]
    page: int

    def within(self, *kinds: str) -> tuple[str, int] | None:
        """The innermost element of these kinds that holds it."""
        return next((element for element in reversed(self.path) if element[0] in kinds), None)


def leaves(pdf: bytes) -> list[Leaf]:
    """All content of a PDF in reading order."""
    objects = {
        int(found[1]): found[2].decode("latin-1") for found in re.finditer(rb"(\d+) 0 obj\s*(.*?)\s*endobj", pdf, re.S)
    }
    root = next(text for text in objects.values() if "/StructTreeRoot" in text and "/ParentTree " in text)
    return list(_walk(objects, int(re.findall(r"/K (\d+) 0 R", root)[0]), ()))


def faults(pdf: bytes) -> list[str]:
    """A sentence for everything that is cut in two, and for a heading, caption or table head that its block does not follow.

    The head of a table that is longer than a page is on each of its pages.
    """
    found = []
    content = leaves(pdf)
    pages: dict[tuple[str, int], set[int]] = {}
    for leaf in content:
        for element in leaf.path:
            pages.setdefault(element, set()).add(leaf.page)
    pairs = [
        (leading, following)
        for one, following in itertools.pairwise(content)
        if (leading := _leading(one)) and leading not in following.path
    ]
    heads = {leading for leading, _ in pairs if leading[0] == "TR"}
    for element, where in pages.items():
        if element[0] in WHOLE and element not in heads and len(where) > 1:
            found.append(f"{element[0]} {element[1]} is cut in two")
    for leading, following in pairs:
        if following.page not in pages[leading]:
            found.append(f"{leading[0]} {leading[1]} stands alone at the end of its page")
    return found


def _leading(leaf: Leaf) -> tuple[str, int] | None:
    """The heading, table's caption or head's row that a leaf is in: what its block must follow on the same page."""
    heading = leaf.within(*HEADINGS)
    if heading or not leaf.within("Table"):  # a figure's caption stands below it
        return heading
    return leaf.within("Caption") or (leaf.within("TR") if leaf.within("TH") else None)


def _walk(objects: dict[int, str], number: int, path: tuple[tuple[str, int], ...]) -> Iterator[Leaf]:
    text = objects[number]
    kind = re.search(r"/S /(\w+)", text)
    children = re.search(r"/K (.*)>>$", text, re.DOTALL)
    if kind is None or children is None:
        return
    path = (*path, (kind[1], number))
    page = re.search(r"/Pg (\d+) 0 R", text[: children.start()])
    for inner, reference, own in re.findall(r"(<<.*?>>)|(\d+) 0 R|(\d+)", children[1], re.DOTALL):
        if inner:
            if placed := re.search(r"/Pg (\d+) 0 R", inner):
                yield Leaf(path, int(placed[1]))
        elif reference:
            yield from _walk(objects, int(reference), path)
        elif own and page:
            yield Leaf(path, int(page[1]))
