"""Files of options: YAML or JSON in, YAML out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from hpcdml.cli.values import Dumper, Loader
from hpcdml.errors import UsageError

Entry = tuple[str, Any, str]  # option as written, its value, place for an error line ("run.yaml, line 3")


def read(path: str) -> list[Entry]:
    """Read a file of options: one mapping, each option once.

    Raises:
        UsageError: the file cannot be read, or is no such mapping; names the file and the line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file of options (an option itself begins with --)") from None
    except OSError as problem:
        raise UsageError(f"{path}: cannot be read: {(problem.strerror or str(problem)).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: must be a YAML or JSON file in UTF-8") from None
    try:
        return list(_json(path, text) if path.lower().endswith(".json") else _yaml(path, text))
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply") from None


def write(values: dict[str, Any]) -> str:
    """The options as YAML lines, spelled as on the command line."""
    representer = yaml.representer.SafeRepresenter(default_flow_style=True, sort_keys=False)
    root = representer.represent_data({name.replace("_", "-"): value for name, value in values.items()})
    root.flow_style = False  # a line for each option, lists and mappings within it
    # In ASCII: PyYAML does not read back all that it writes beyond.
    text: str = yaml.serialize(root, Dumper=Dumper, allow_unicode=False, width=10**6)
    return text


def _yaml(path: str, text: str) -> Iterator[Entry]:
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path}: must hold lines of the form option: value")
        loader.flatten_mapping(root)
        for key, value in root.value:
            yield str(key.value), loader.construct_object(value, deep=True), f"{path}, line {key.start_mark.line + 1}"
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f"{path}, line {mark.line + 1}" if mark else path
        raise UsageError(f"{place}: not well-formed YAML: {problem.problem or problem.context}") from None
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise UsageError(f"{path}, line {line}: not well-formed YAML: {problem.reason}") from None
    except ValueError as problem:  # a number with more digits than Python converts
        raise UsageError(f"{path}: {problem}") from None


def _json(path: str, text: str) -> Iterator[Entry]:
    try:
        root = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as problem:
        line, what = (problem.lineno, problem.msg) if isinstance(problem, json.JSONDecodeError) else (1, problem)
        raise UsageError(f"{path}, line {line}: not well-formed JSON: {what}") from None
    if not isinstance(root, _Pairs):
        raise UsageError(f'{path}: must hold one object of the form {{"option": value}}')
    for key, value in root.pairs:
        yield key, value, path


class _Pairs(dict[str, Any]):
    """A JSON object that still knows which keys were given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs
