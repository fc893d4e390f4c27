"""``hpcdml report``: what a run reached, for the terminal, for the browser and for other programs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpcdml.cli.parser import Parser
from hpcdml.errors import UsageError

if TYPE_CHECKING:
    from hpcdml.observability.view import RunView

PAGES = (".html", ".htm")


def parse(argv: Sequence[str]) -> Namespace:
    """The runs and the form."""
    parser = Parser(
        "report",
        "RUN [RUN ...] [--html OUT.html] [--csv FOLDER] [--tensorboard FOLDER] | RUN [--json | --compare OTHER]",
        "Tell what runs reached and what bounds them; they may still be going on.",
        "With --html, --csv or --tensorboard no table is printed; files of the same name are replaced.\n"
        "Of several runs --csv and --tensorboard make a folder for each.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="output folder of a run, or its run.h5")
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: a table)")
    parser.add_argument(
        "--compare", metavar="OTHER", help="print one line that compares RUN with another run (default: none)"
    )
    parser.add_argument("--html", metavar="OUT", help="write one page with curves and time lines (default: none)")
    parser.add_argument("--csv", metavar="FOLDER", help="write the tables of run.h5 as CSV files (default: none)")
    parser.add_argument(
        "--tensorboard", metavar="FOLDER", help="write the curves for TensorBoard, hpcdml[tensorboard] (default: none)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if not found.runs:
        raise UsageError("report: of which run? as in hpcdml report runs/latest")
    if found.json and found.compare is not None:
        raise UsageError("--json: does not go with --compare; ask for the JSON of each run")
    for name in ("json", "compare"):
        if getattr(found, name) and len(found.runs) > 1:
            raise UsageError(f"--{name}: is about one RUN; {found.runs[1]} is one argument too many")
    return found


def run(job: Namespace) -> int:
    """Write what was asked for, else print the report of each run."""
    from hpcdml.observability.report import format_advice, format_json, format_report
    from hpcdml.observability.view import views

    if job.tensorboard is not None:
        from hpcdml.observability.tensorboard import check_tensorboard

        check_tensorboard()
    if job.html is not None:
        from hpcdml.observability.output import check_ending

        check_ending("--html", job.html, PAGES)
    runs = views(job.runs)
    if job.compare is not None:
        print(compare(runs[0].summary, views([job.compare])[0].summary))
    elif job.json:
        advice = runs[0].advice
        print(format_json(runs[0].summary | {"bound_by": advice.bound, "advice": advice.option}))
    elif (job.html, job.csv, job.tensorboard) != (None, None, None):
        _write(job, runs)
    else:
        print("\n\n".join(f"{format_report(r.summary)}\n\n{format_advice(r.advice)}" for r in runs))
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


def _write(job: Namespace, runs: list[RunView]) -> None:
    if job.html is not None:
        from hpcdml.observability.output import replacing
        from hpcdml.observability.page import page

        text = page(runs)
        with replacing("--html", job.html) as place:
            place.write_text(text, encoding="utf-8")
        print(f"{job.html}: {len(text.encode()) / 1000:,.0f} kB; open it in a browser, it needs no network")
    for r in runs:
        if job.csv is not None:
            from hpcdml.observability.table_files import write_csv

            folder = _folder(job.csv, r, runs)
            print(f"{folder}: {', '.join(path.name for path in write_csv(r.run, folder))}")
        if job.tensorboard is not None:
            from hpcdml.observability.tensorboard import write_tensorboard

            folder = _folder(job.tensorboard, r, runs)
            count = write_tensorboard(r, folder)
            print(f"{folder}: {count:,} points; tensorboard --logdir {job.tensorboard}")


def _folder(base: str, one: RunView, runs: list[RunView]) -> str:
    return base if len(runs) == 1 else os.path.join(base, one.name.replace(os.sep, "_"))
