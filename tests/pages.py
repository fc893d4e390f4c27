"""The pages of the documentation: their blocks of code, and the marks on them.

A block is fenced and names its language. A comment right before it may be a mark:

``<!-- not run: REASON -->``  it cannot run in a test, or takes too long
``<!-- file: NAME -->``       it is what the reader puts into that file
``<!-- before: COMMAND -->``  what the page takes for granted, run first
``<!-- options -->``          each line is an example of options for hpcdml train, with an explanation behind two spaces
``<!-- output -->``           what the block before it prints
``<!-- output: OF WHAT -->``  the same, on a machine that is like that; it is not compared
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNNABLE = ("bash", "python")
MARKS = ("not run", "file", "before", "options", "output")


@dataclass(frozen=True)
class Block:
    """A block of a page: its place, its language, its mark with what that says, and its text."""

    page: str
    line: int
    language: str
    mark: str
    says: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages, by their paths from the root."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in their order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opening = re.match(r"(`{3,})(.*)$", lines[at])
        if not opening:
            at += 1
            continue
        end = lines.index(opening[1], at + 1)
        before = next((line for line in reversed(lines[:at]) if line), "")
        mark = re.match(r"<!-- ([a-z ]+?)(?:: (.*))? -->$", before)
        text = "\n".join(lines[at + 1 : end]) + "\n"
        name, says = (mark[1], mark[2] or "") if mark else ("", "")
        yield Block(page, at + 1, opening[2].strip(), name, says, text)
        at = end + 1


def indented(page: str) -> list[int]:
    """Lines of code that is only indented, which nothing would run."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    fenced = False
    found = []
    for number, (line, above) in enumerate(zip(lines, ["", *lines], strict=False), 1):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"(    |\t)\S", line) and not above:
            found.append(number)
    return found
