"""The page: sections in order, in `draw/shell.py` around them."""

from __future__ import annotations

from opmix_ray.draw.html import contents, paragraph, section
from opmix_ray.draw.shell import shell
from opmix_ray.report import run_sections as parts
from opmix_ray.report.decision_section import decision_section
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.promises import promises
from opmix_ray.report.side_by_side import of_run
from opmix_ray.storage import Storage

REPORT = "report.html"
FOOTER = (
    "Losses are in nats per token on held-out documents; a share is a share of training tokens. Perplexity is e to the "
    "weighted mean loss of the targets. Intervals are given in brackets."
)


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
    head, main = page_parts(run)
    body = f"<header>{head}</header>\n<main>{main}</main>"
    return shell(f"{run.name}: mixture report", body, footer=FOOTER)


def page_parts(run: RunFiles) -> tuple[str, str]:
    """What stands above the sections, contents included, and the sections."""
    decisions = "".join(decision_section(files, run.judged(files), run.tokens) for files in run.decisions)
    decided = parts.gains(run) + promises(run) + (decisions or paragraph("There is none yet."))
    sections = [
        ("side-by-side", "Mixtures side by side", of_run(run)),
        ("mixture", "", parts.mixtures(run)),
        ("loss", "", "" if run.searched else parts.losses(run)),
        ("decisions", "Decisions", decided),
        ("tokens", "", "" if run.searched else parts.tokens(run)),
        ("cost", "", parts.cost(run)),
        ("configuration", "", parts.configuration(run)),
    ]
    shown = [
        (name, title or name.capitalize(), section(title, text, name=name) if title else text)
        for name, title, text in sections
        if text
    ]
    return parts.opening(run) + contents((name, title) for name, title, _ in shown), "\n".join(
        text for _, _, text in shown
    )
