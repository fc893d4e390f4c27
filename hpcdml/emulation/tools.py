"""Calls of ``ip`` and ``tc``, and what the machine must have for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from hpcdml.errors import MachineError, UsageError

# Program: what brings it.
_PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "hostname": "hostname"}
_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"  # often not on the path of those who use sudo


def find_program(name: str) -> str:
    """The full path of a program of the system.

    Raises:
        MachineError: there is none; with the package that brings it.
    """
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM_FOLDERS]))
    if path is None:
        package = _PROGRAMS.get(name, name)
        raise MachineError(f"an emulated cluster needs {name}: install the package {package}")
    return path


def check_machine() -> None:
    """Check for Linux, root and the programs; changes nothing.

    Raises:
        UsageError: the user is not root.
        MachineError: another system, or a program is missing.
    """
    if not sys.platform.startswith("linux"):
        raise MachineError(f"an emulated cluster needs the network namespaces of Linux; this is {sys.platform}")
    if os.geteuid() != 0:
        raise UsageError("an emulated cluster needs root, for network namespaces: run it with sudo or in a container")
    for name in _PROGRAMS:
        find_program(name)


def ip(*arguments: str, need: str = "") -> str:
    """Run ``ip`` and return its output.

    Args:
        need: what the machine must have for this call, told where it fails.

    Raises:
        MachineError: it failed; with its first line.
    """
    return _call("ip", arguments, need)


def tc(*arguments: str, need: str = "") -> str:
    """Run ``tc``; as ``ip``."""
    return _call("tc", arguments, need)


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    """The rows that ``ip -json`` tells; as ``ip``."""
    return _rows(ip("-json", *arguments))


def tc_json(*arguments: str) -> list[dict[str, Any]]:
    """The rows that ``tc -json`` tells; as ``ip``."""
    return _rows(tc("-json", *arguments))


def _rows(text: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(text or "[]") if row]  # ip writes {} for what its filter leaves out


def _call(program: str, arguments: tuple[str, ...], need: str) -> str:
    done = subprocess.run(
        [find_program(program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in a terminal must not end it halfway: the caller cleans up by such calls
    )
    if done.returncode:
        said = next(iter(done.stderr.split("\n")), "").strip() or f"status {done.returncode}"
        raise MachineError(f"{program} {' '.join(arguments)}: {said}" + (f"; it needs {need}" if need else ""))
    return done.stdout
