"""Values of options: from a word of the command line or a YAML value to the type that the dataclass names.

Both ways use one YAML dialect, the core schema of YAML 1.2: ``1e-3`` is a number and ``no`` is a word, as users
expect, where PyYAML's own YAML 1.1 has it the other way round.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from hpcdml.errors import UsageError

Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Kind:
    """How the values of an option are written.

    Args:
        name: the type's name in the help text.
        metavar: what stands for a value in the help text; empty for a flag, which needs none.
        right: what a value must be, for the error line.
        convert: from a word or a YAML value; raises ``ValueError`` where the value is not right.
    """

    name: str
    metavar: str
    right: str
    convert: Convert


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, and no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; a key given twice is an error and not the last one's win."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        built: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return built


class Dumper(yaml.SafeDumper):
    """Writes what ``Loader`` reads back as the same value."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def kind_of(annotation: Any) -> Kind:
    """The kind of a dataclass field, by its type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = [kind_of(a) for a in arguments if a is not type(None)]
        return Kind(f"{inner.name} or none", inner.metavar, f"{inner.right} or none", _optional(inner.convert))
    if origin is Literal:
        names = ", ".join(arguments)
        return Kind(f"one of {names}", "NAME", f"one of {names}", lambda value: _choice(value, arguments))
    if origin is list:
        return Kind("list of numbers", "X,X,...", "numbers, as in 3,1", _numbers)
    if origin is dict:
        if arguments[1] is float:
            return Kind("mapping", "KEY=X,...", "key=number,...", lambda value: _mapping(value, _number))
        return Kind("mapping", "KEY=VALUE,...", "key=value,...", lambda value: _mapping(value, _plain))
    return {
        bool: Kind("flag", "", "true or false", _truth),
        int: Kind("whole number", "N", "a whole number", _whole),
        float: Kind("number", "X", "a number", _number),
        str: Kind("text", "TEXT", "text (in quotes where it looks like something else)", _text),
    }[annotation]


def show(value: Any) -> str:
    """A value as a word of an error line: short, one line, never nothing."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(str(value).split())
    return repr(value) if not text else text if len(text) <= 80 else text[:77] + "..."


def _optional(convert: Convert) -> Convert:
    def converted(value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "~")):
            return None
        return convert(value)

    return converted


def _truth(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    try:
        return float(value)
    except OverflowError:
        raise ValueError from None


def _whole(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e6
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError
    return value


def _plain(value: Any) -> Any:
    return value


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):
        value = [part for part in value.strip().removeprefix("[").removesuffix("]").split(",") if part or "," in value]
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, list):
        raise ValueError
    return [_number(v) for v in value]


def _mapping(value: Any, convert: Convert) -> dict[str, Any]:
    if isinstance(value, str):
        value = _pairs(value)
    if not isinstance(value, dict):
        raise ValueError
    return {_key(k): convert(v) for k, v in value.items()}


def _key(key: Any) -> str:
    if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
        raise ValueError
    return str(key)


def _pairs(text: str) -> dict[Any, Any]:
    """Read ``key=value,...`` (or a YAML or JSON mapping in braces); the values are YAML, so lists may hold commas."""
    try:
        if text.lstrip().startswith("{"):
            return yaml.load(text, Loader)
        found: dict[Any, Any] = {}
        for part in _split(text):
            key, equals, value = part.partition("=")
            if not equals or not key.strip() or key.strip() in found:
                raise ValueError
            found[key.strip()] = yaml.load(value, Loader)
        return found
    except (yaml.YAMLError, RecursionError):
        raise ValueError from None


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text.strip() else []


def seconds(option: str, word: str, least: float = 0.0) -> float:
    """A number of seconds from a word of the command line.

    Raises:
        UsageError: it is none, or below ``least``.
    """
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise UsageError(f"{option} {word}: must be a number of seconds, {least:g} or more")
    return value
