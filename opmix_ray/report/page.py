"""The page: sections in order, one style sheet, no script and nothing from the network."""

from __future__ import annotations

from importlib.resources import files as resources

from opmix_ray.report import run_sections as parts
from opmix_ray.report.decision_section import decision_section
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.html import esc, paragraph, section
from opmix_ray.report.palette import css
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
    decisions = "".join(decision_section(files, files.objective or run.objective) for files in run.decisions)
    body = [
        parts.mixtures(run),
        "" if run.searched else parts.losses(run),
        section(
            "Decisions", parts.gains(run) + (decisions or paragraph("There is none yet.")), name="decisions"
        ),
        "" if run.searched else parts.tokens(run),
        parts.cost(run),
        parts.configuration(run),
    ]
    style = resources("opmix_ray.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(run.name)}: mixture report</title><style>{css()}{style}</style></head>\n"
        f"<body><header>{parts.opening(run)}</header>\n<main>{chr(10).join(body)}</main>\n"
        "<footer>Losses are in nats per token on held-out documents; a share is a share of training tokens. "
        "Intervals are given in brackets.</footer></body></html>\n"
    )
