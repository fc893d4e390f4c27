"""The report as one page of HTML that needs nothing else: no network, no script, no font."""

from __future__ import annotations

from hpcdml.observability.page.document import page

__all__ = ["page"]
