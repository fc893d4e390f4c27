"""One line of the doctor: how it is, what was looked at, what was found, and what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

LINES, COLUMNS = 24, 80
OK, WARNING, WRONG, NONE = "ok", "warning", "wrong", "-"
_INDENT = 18


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        level: ``OK``, ``WARNING``, ``WRONG``, or ``NONE``: there is nothing of that kind here, and none is needed.
        what: the check's name, one word.
        text: what was found.
        advice: what to do; empty where nothing is to be done.
    """

    level: str
    what: str
    text: str
    advice: str = ""

    def lines(self, most: int = 3) -> list[str]:
        """As it is shown: the name and the text, the advice below it, each in at most so many lines."""
        shown = _wrap(self.text, most)
        head = f"{self.level:<7} {self.what:<{_INDENT - 8}}{shown[0]}"
        rest = [" " * _INDENT + line for line in shown[1:]]
        return [head, *rest, *(" " * _INDENT + line for line in _wrap(f"> {self.advice}", most) if self.advice)]


def _wrap(text: str, most: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), COLUMNS - _INDENT, max_lines=most, placeholder=" ...", break_on_hyphens=False
    ) or [""]


def status(findings: Sequence[Finding]) -> int:
    """The exit status: 1 if something is wrong."""
    return int(any(finding.level == WRONG for finding in findings))


def screen(title: str, findings: Sequence[Finding]) -> str:
    """All of them on one screen of 24 lines and 80 columns; where they are too many, what is good is shortened."""
    count = {level: sum(finding.level == level for finding in findings) for level in (WARNING, WRONG)}
    verdict = "usable" if not count[WRONG] else f"not usable: {count[WRONG]} wrong"
    warnings = f", {count[WARNING]} warning{'s' * (count[WARNING] != 1)}" if count[WARNING] else ""
    frame = [title[:COLUMNS], "", *_body(findings, LINES - 4), "", verdict + warnings]
    return "\n".join(frame)


def _body(findings: Sequence[Finding], room: int) -> list[str]:
    full = [line for finding in findings for line in finding.lines()]
    if len(full) <= room:
        return full
    good = Finding(OK, "all of", ", ".join(f.what for f in findings if f.level == OK) or "none")
    bad = [finding for finding in findings if finding.level in (WARNING, WRONG)]
    for shown, most in (([good, *(f for f in findings if f.level != OK)], 2), ([good, *bad], 2), ([good, *bad], 1)):
        lines = [line for finding in shown for line in finding.lines(most)]
        if len(lines) <= room:
            return lines
    # Everything is wrong: the advice about what is only doubtful has to go.
    bare = [Finding(f.level, f.what, f.text, f.advice if f.level == WRONG else "") for f in bad]
    return [line for finding in bare for line in finding.lines(1)][:room]
