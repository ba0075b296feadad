"""The page: sections in order, in `draw/shell.py` around them.

The page of a run that goes on shows where it stands now, and below that as much of the report as there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import contents, esc, paragraph, section, tiles
from opmix_ray.draw.shell import resource, shell
from opmix_ray.report import run_sections as parts
from opmix_ray.report.decision_section import decision_section
from opmix_ray.report.gather import RunFiles, gather
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
    decided = parts.gains(run) + parts.promises(run) + (decisions or paragraph("There is none yet."))
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


@dataclass(frozen=True)
class Now:
    """What is known of the moment.

    Args:
        doing: in words.
        ended: `finished`, `stopped`, or nothing while the run goes on.
        step, steps: of training, done and planned.
        loss: of the last training row, nats per token; None: no row yet.
        tokens_per_second: likewise.
        seconds_left: of training, at that speed; None: not known.
    """

    doing: str
    ended: str
    step: int
    steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def live_page(title: str, content: str) -> str:
    """The page that asks for news.

    Args:
        title: plain text.
        content: from `fragment` or `waiting`.
    """
    lost = (
        '<p id="lost" class="warn" role="status" hidden>No answer: the run or the command that serves this page has '
        "ended. What stands here is what was known last.</p>"
    )
    body = f'{lost}<div id="now" aria-live="polite">{content}</div>'
    return shell(f"{title}: live", body, footer=FOOTER, script=resource("live.js"), live=True)


def waiting(why: str) -> str:
    """What stands on the page before there is a run to show."""
    return f"<header><h1>Not yet</h1>{paragraph(why)}</header>"


def fragment(run: RunFiles, now: Now) -> str:
    """The part of the page that changes: the time, then the report."""
    head, main = page_parts(run)
    return f"<header>{_moment(now)}{head}</header>\n<main>{main}</main>"


def _moment(now: Now) -> str:
    shown = [(f"{now.step:,} of {now.steps:,}", "steps")]
    if now.loss is not None:
        shown.append((n.loss(now.loss), "training loss, nats per token"))
    if now.tokens_per_second is not None:
        shown.append((n.count(now.tokens_per_second), "tokens per second"))
    if now.seconds_left is not None and not now.ended:
        shown.append((n.seconds(now.seconds_left), "of training left, decisions not counted"))
    words = {"finished": "Finished", "stopped": "Stopped: nobody is working on this run"}
    said = words.get(now.ended, f"Now: {now.doing}")
    bar = f'<progress max="{max(1, now.steps)}" value="{now.step}"></progress>'
    return f'<div class="now" data-ended="{esc(now.ended)}">{paragraph(said, kind="lead")}{bar}{tiles(shown)}</div>'
