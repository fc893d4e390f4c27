"""What a person sees of a run: the progress while it lasts, a summary afterwards, the machine that it ran on."""

from __future__ import annotations

from hpcdml.observability.environment import environment
from hpcdml.observability.progress import Progress
from hpcdml.observability.report import format_json, format_report
from hpcdml.observability.summary import summarise

__all__ = ["Progress", "environment", "format_json", "format_report", "summarise"]
