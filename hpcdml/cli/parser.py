"""An ``argparse`` parser whose mistakes are one line and whose help is handed back instead of printed."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import NoReturn

from hpcdml.errors import UsageError

NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


class Answer(Exception):
    """The command line asked for a text (help, version, configuration) and not for work."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class HelpFormatter(argparse.HelpFormatter):
    """Help as wide as the terminal, within reason."""

    def __init__(self, prog: str) -> None:
        width = min(max(shutil.get_terminal_size((100, 24)).columns - 2, 60), 118)
        super().__init__(prog, max_help_position=28, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())  # epilogs are laid out by hand


class Parser(argparse.ArgumentParser):
    """Raises ``UsageError`` or ``Answer`` where ``argparse`` prints and exits: under MPI one rank speaks for all."""

    def __init__(self, command: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"hpcdml {command}",
            usage=f"hpcdml {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.command = command

    def scan(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments after the command's name.

        Raises:
            Answer: the help was asked for.
            UsageError: an option is unknown or lacks its value.
        """
        options = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
        if "-h" in options or "--help" in options:
            raise Answer(self.format_help())
        try:
            found, rest = self.parse_known_args(self._join_negative(argv))
        except argparse.ArgumentError as problem:
            name = (problem.argument_name or "").split("/")[0]
            action = self._option_string_actions.get(name)
            rule = f"needs a value: {name} {action.metavar}" if action and action.nargs != 0 else "takes no value"
            raise UsageError(f"{name}: {rule}") from None
        for extra in sorted(rest, key=lambda word: not word.startswith("-")):
            if extra == "--":
                continue
            if extra.startswith("-"):
                name = extra.split("=")[0]
                raise UsageError(f"{name}: no such option; {self._advice(name)}")
            raise UsageError(f"{extra}: one argument too many; hpcdml {self.command} --help shows the form")
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.command}: {message}")

    def _advice(self, name: str) -> str:
        close = nearest(name, self._option_string_actions)
        return f"did you mean {close}?" if close else f"hpcdml {self.command} --help lists them"

    def _join_negative(self, argv: Sequence[str]) -> list[str]:
        """Write ``--lr -1e-3`` as ``--lr=-1e-3``: ``argparse`` would take that number for an option."""
        joined: list[str] = []
        for word in argv:
            action = self._option_string_actions.get(joined[-1]) if joined else None
            if action is not None and action.nargs != 0 and NEGATIVE.match(word):
                joined[-1] += "=" + word
            else:
                joined.append(word)
        return joined


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    return next(iter(difflib.get_close_matches(name.replace("_", "-").lower(), list(known), 1, 0.6)), None)
