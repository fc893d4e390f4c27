"""``hpcdml report``: what a run reached."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from hpcdml.cli.parser import Parser
from hpcdml.errors import UsageError


def parse(argv: Sequence[str]) -> Namespace:
    """The run, the form and perhaps a second run to compare it with."""
    parser = Parser("report", "RUN [--json | --compare OTHER]", "Tell what a run reached; it may still be going on.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="output folder of the run, or its run.h5")
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: a table)")
    parser.add_argument(
        "--compare", metavar="OTHER", help="print one line that compares RUN with another run (default: none)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if found.run is None:
        raise UsageError("report: of which run? as in hpcdml report runs/latest")
    if found.json and found.compare is not None:
        raise UsageError("--json: does not go with --compare; ask for the JSON of each run")
    return found


def run(job: Namespace) -> int:
    """Print the report of one run, or the line that compares two."""
    from hpcdml.observability.report import format_json, format_report

    summary = _summary(job.run)
    if job.compare is not None:
        print(compare(summary, _summary(job.compare)))
    else:
        print((format_json if job.json else format_report)(summary))
    return 0


def compare(one: dict[str, Any], other: dict[str, Any]) -> str:
    """One line: the first run's figures, and beside each the other's."""
    parts = []
    if one.get("final_accuracy") is not None and other.get("final_accuracy") is not None:
        parts.append(f"accuracy {one['final_accuracy']:.2%} against {other['final_accuracy']:.2%}")
    elif one.get("final_loss") is not None and other.get("final_loss") is not None:
        parts.append(f"loss {one['final_loss']:.4g} against {other['final_loss']:.4g}")
    fast, slow = one.get("samples_per_second"), other.get("samples_per_second")
    if fast is not None and slow is not None:
        ratio = f", {fast / slow:.2f} times as many" if slow > 0 else ""
        parts.append(f"{fast:,.0f} samples/s against {slow:,.0f}{ratio}")
    parts.append(f"workers idle {_shares(one)} against {_shares(other)} of the time")
    return f"{one.get('policy')} against {other.get('policy')}: " + "; ".join(parts)


def _shares(summary: dict[str, Any]) -> str:
    return ", ".join(f"{share:.1%}" for share in summary.get("idle_fraction") or []) or "unknown"


def _summary(path: str) -> dict[str, Any]:
    from hpcdml.observability.summary import summarise
    from hpcdml.storage.run_reader import RunReader

    return summarise(RunReader(path))
