"""Options from dataclasses: the help text, the command line and the files all derive from the fields of the groups.

Plain ``argparse`` and PyYAML, not jsonargparse: that one's errors take two lines and name Python types, ``3,1`` and
``key=value`` are no values to it, flags need a value, and a file that stands after an option overrides it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from hpcdml.cli import files
from hpcdml.cli.parser import Parser, nearest
from hpcdml.cli.values import Kind, kind_of, show
from hpcdml.config import flag
from hpcdml.errors import UsageError


@dataclass(frozen=True)
class Option:
    """One field of a group."""

    name: str
    kind: Kind
    default: Any
    help: str

    def convert(self, value: Any, place: str) -> Any:
        """Convert a value found at ``place``, the start of the error line."""
        try:
            return self.kind.convert(value)
        except ValueError:
            raise UsageError(f"{place} {show(value)}: must be {self.kind.right}") from None


@dataclass(frozen=True)
class Request:
    """What the user asked for: the options given, by name with underscores, and for each its file if it is from one.

    ``target``: the command's own argument, for a command that has one in place of a file of options.
    """

    values: dict[str, Any]
    origin: dict[str, str]
    print_config: bool
    target: str | None = None

    def blame(self, error: UsageError) -> UsageError:
        """Add the file's name to an error about an option that was read from a file."""
        name = str(error).partition(" ")[0].removeprefix("--").replace("-", "_")
        return UsageError(f"{error} (from {self.origin[name]})") if name in self.origin else error


def options_of(group: type) -> list[Option]:
    """The options of one dataclass, in its order."""
    hints = get_type_hints(group)
    blank = group()
    return [
        Option(f.name, kind_of(hints[f.name]), getattr(blank, f.name), f.metadata.get("help", ""))
        for f in dataclasses.fields(group)
    ]


def read(
    argv: Sequence[str],
    command: str,
    groups: Sequence[type],
    description: str,
    epilog: str = "",
    target: tuple[str, str] | None = None,
) -> Request:
    """Read ``[FILE] [--option value ...]``: the file first, then the command line, wherever the file stands in it.

    Args:
        target: name and help of an argument that the command has in place of a file of options.

    Raises:
        Answer: the help was asked for.
        UsageError: in one line, with the option, the value and what would be right.
    """
    name, text = target or ("[RUN.yaml]", "YAML or JSON file of the options below, as in lr: 0.02")
    parser = Parser(command, f"{name} [--option value ...]", description, epilog)
    parser.add_argument("file", nargs="?", metavar=name.strip("[]"), help=text)
    known: dict[str, Option] = {}
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).strip())
        for option in options_of(group):
            known[option.name] = option
            _add(section, option)
    section = parser.add_argument_group("Other")
    if target is None:
        section.add_argument("--print-config", action="store_true", help="print the options as a YAML file and stop")
    section.add_argument("-h", "--help", action="store_true", help="show this text and stop")

    found = parser.scan(argv)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value, place in files.read(found.file) if found.file is not None and target is None else ():
        option = _lookup(key, known, place, command)
        if option.name in values:
            raise UsageError(f"{place}: {key}: is given twice")
        values[option.name] = option.convert(value, f"{place}: {key}:")
        origin[option.name] = found.file
    for name, option in known.items():
        given = getattr(found, name)
        if given is not None:
            values[name] = option.convert(given, flag(name))
            origin.pop(name, None)
    if target is not None:
        return Request(values, origin, False, found.file)
    return Request(values, origin, found.print_config)


def _add(section: argparse._ArgumentGroup, option: Option) -> None:
    name, kind = option.name, option.kind
    if kind.metavar == "":
        section.add_argument(flag(name), dest=name, action="store_const", const=True, help=_help(option))
        section.add_argument(
            "--no-" + flag(name)[2:], dest=name, action="store_const", const=False, help=argparse.SUPPRESS
        )
    else:
        section.add_argument(flag(name), dest=name, metavar=kind.metavar, help=_help(option))


def _help(option: Option) -> str:
    kind, default = option.kind, option.default
    off = f"; --no-{flag(option.name)[2:]} undoes it" if kind.metavar == "" else ""
    shown = "none" if default is None else show(default) if default not in ([], {}) else "empty"
    return f"{option.help}{off} ({kind.name}; default: {shown})".replace("%", "%%")


def _lookup(key: str, known: dict[str, Option], place: str, command: str) -> Option:
    name = key.replace("-", "_")
    if name not in known:
        close = nearest(key.lstrip("-_"), [n.replace("_", "-") for n in known])
        advice = f"did you mean {close}?" if close else f"hpcdml {command} --help lists them"
        raise UsageError(f"{place}: {show(key)}: no such option; {advice}")
    return known[name]
