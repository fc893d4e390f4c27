"""The user's own code behind an option: ``package.module:function`` is found and called here, and nowhere else."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from hpcdml.errors import UsageError

_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_LONGEST = 300


def is_factory(spec: str) -> bool:
    """Whether ``spec`` has the form ``package.module:function``; nothing is imported."""
    return _SPEC.fullmatch(spec) is not None


def load_factory(option: str, spec: str) -> Callable[..., Any]:
    """Import the callable that ``spec`` names; the current folder counts as a place for modules.

    Args:
        option: the option that holds ``spec``, as the user writes it (``--model``).
        spec: ``package.module:function``; ``function`` may be an attribute of a class (``Nets.small``).

    Raises:
        UsageError: ``spec`` has another form, the module is missing or fails on import, or the function is missing or
            not callable.
    """
    if not is_factory(spec):
        raise UsageError(f"{option} {spec}: must have the form package.module:function")
    name, path = spec.split(":")
    # The console script puts its own folder on the path, and not the user's, as python -m would.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _import(option, spec, name)
    for step in path.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            raise UsageError(f"{option} {spec}: module {name} has no function {path}") from None
    if not callable(found):
        raise UsageError(f"{option} {spec}: {path} is not a function but of type {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def call_factory(option: str, spec: str, function: Callable[..., Any], /, **kwargs: Any) -> Any:
    """Call the user's ``function`` and return what it returns.

    Raises:
        UsageError: the function raised; the message gives type and text of its exception, which is the cause.
    """
    try:
        return function(**kwargs)
    # A script that calls sys.exit must not end this rank in silence while the others wait for it.
    except (Exception, SystemExit) as error:
        raise UsageError(f"{option} {spec}: raised {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Type and text of an exception in one line, cut at 300 characters."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import(option: str, spec: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the module itself or one of its parents is a wrong spec; another name is an import inside the module.
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise UsageError(f"{option} {spec}: importing {name} raised {one_line(error)}") from error
        raise UsageError(
            f"{option} {spec}: there is no module {error.name} (looked in {os.getcwd()} and the Python path)"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{option} {spec}: importing {name} raised {one_line(error)}") from error
