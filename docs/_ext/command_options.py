"""The directive ``command-options``: every command and option of ``hpcdml``, read from its own parsers."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from collections.abc import Iterator
from unittest import mock

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.parsing import nested_parse_to_nodes

from hpcdml.cli.bench import BENCHMARKS
from hpcdml.cli.data import ACTIONS
from hpcdml.cli.main import COMMANDS
from hpcdml.cli.parser import Answer, Parser


def parsers() -> Iterator[Parser]:
    """The parser of every command, in the order of ``hpcdml --help``."""
    for command in COMMANDS:
        for words in {"bench": [[name] for name in BENCHMARKS], "data": [[name] for name in ACTIONS]}.get(
            command, [[]]
        ):
            yield parser_of(command, words)


def parser_of(command: str, words: list[str]) -> Parser:
    """The parser that a command makes when it is asked for its help."""
    module = importlib.import_module(COMMANDS[command][1])
    found: list[Parser] = []

    def scan(self: Parser, argv: list[str]) -> argparse.Namespace:
        found.append(self)
        raise Answer("")

    with mock.patch.object(Parser, "scan", scan), contextlib.suppress(Answer):
        module.parse([*words, "--help"])
    return found[0]


def lines_of(parser: Parser) -> Iterator[str]:
    """A command as reStructuredText: usage, description, and an entry for each option."""
    title = f"{parser.prog}"
    yield from (title, "-" * len(title), "", f".. program:: {parser.prog}", "")
    yield from (_plain(parser.description or ""), "", "::", "", f"    {parser.usage}", "")
    if parser.epilog:
        yield from ("::", "", *(f"    {line}" for line in parser.epilog.splitlines()), "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield from (f".. rubric:: {group.title}", "")
        for action in actions:
            names = action.option_strings or [str(action.metavar)]
            value = f" {action.metavar}" if action.option_strings and action.nargs != 0 else ""
            yield from (".. option:: " + ", ".join(name + value for name in names), "")
            yield from ("    " + _plain((action.help or "").replace("%%", "%")), "")


def _plain(text: str) -> str:
    """Text in which nothing is markup, with options in code type."""
    text = re.sub(r"([\\*`|_])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"``\1``", text)


class CommandOptions(SphinxDirective):
    """All commands, one section each."""

    def run(self) -> list[nodes.Node]:
        text = [line for parser in parsers() for line in lines_of(parser)]
        return nested_parse_to_nodes(self.state, StringList(text, source="hpcdml --help"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True}
