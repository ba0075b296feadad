"""The page: sections in order, one style sheet, no script and nothing from the network."""

from __future__ import annotations

from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.html import esc, items, section
from opmix_ray.storage import Storage

REPORT = "report.html"


def write_report(storage: Storage) -> str:
    """Write `report.html` into a run's output, finished or not.

    Args:
        storage: the run's output.

    Returns:
        Path or URI of the page.

    Raises:
        UserError: there is no run, or the page cannot be written.
    """
    storage.write_text(REPORT, render(gather(storage)))
    return storage.path(REPORT)


def render(run: RunFiles) -> str:
    """The whole page as one HTML text."""
    body = section("Decisions", items(d.decision.get("reason", d.title) for d in run.decisions))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{esc(run.name)}</title></head><body><h1>{esc(run.name)}</h1>{body}</body></html>"
    )
