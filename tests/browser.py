"""Chromium without a window: what a page writes to its console, what it asks the network for, what it looks like."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0
# No window, no sandbox (CI is root in a container), and none of the browser's own conversations.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--net-log-capture-mode=IncludeSensitive",
)
_CONSOLE = re.compile(r'CONSOLE[:(]\d+\)?\] "(.*)", source:')


@dataclass(frozen=True)
class Visit:
    """What came of a page.

    Attributes:
        console: messages that it wrote to its console, errors of the browser about it among them.
        requests: addresses that it asked for, its own left out.
        document: the page as it was in the end, as HTML.
    """

    console: list[str]
    requests: list[str]
    document: str


def find_browser() -> str | None:
    """The first Chromium on the path."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def visit(page: Path, folder: Path, *flags: str) -> Visit:
    """Open a page of the disk in a fresh profile under ``folder`` and leave it when it has come to rest."""
    log = folder / "net.json"
    done = _run(page, folder, ["--dump-dom", "--virtual-time-budget=2000", f"--log-net-log={log}", *flags])
    return Visit(_CONSOLE.findall(done.stderr), _requests(log, page), done.stdout)


def screenshot(page: Path, folder: Path, width: int, height: int, *flags: str) -> bytes:
    """The page as a PNG."""
    picture = folder / "screenshot.png"
    _run(page, folder, [f"--window-size={width},{height}", f"--screenshot={picture}", *flags])
    return picture.read_bytes()


def _run(page: Path, folder: Path, flags: Sequence[str]) -> subprocess.CompletedProcess[str]:
    program = find_browser()
    assert program is not None
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done


def _requests(log: Path, page: Path) -> list[str]:
    """Addresses of all requests but that for the page itself and those that the browser makes of its own accord."""
    entries = json.loads(log.read_text())
    start = entries["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = []
    for event in entries["events"]:
        about = event.get("params", {})
        url = about.get("url", "")
        # The browser's own requests have no initiator; those of a page name its origin, of a file an opaque one.
        if event["type"] == start and about.get("initiator", "not an origin") != "not an origin":
            found.append(url)
    return [url for url in found if url != page.resolve().as_uri() and not url.startswith("data:")]
