"""The page, its sections in order, and the figures as image files, drawn by matplotlib on white.

The page of a run that goes on shows where it stands now, and below that as much of the report as there is.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import contents, esc, lines_of, paragraph, resource, section, shell, tiles
from opmix_ray.draw.numbers import tick_labels, ticks
from opmix_ray.draw.panel import LIGHT, Dots, Line, Mark, Panel, Rects, Rule, Texts, Whiskers, light
from opmix_ray.errors import UserError
from opmix_ray.report import decision_panels, run_panels
from opmix_ray.report import run_sections as parts
from opmix_ray.report.decision_panels import of_run
from opmix_ray.report.decision_section import decision_section
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.outlook import check_law
from opmix_ray.storage import Storage

FORMATS = ("png", "svg")
DPI = 160
COLUMNS = 3  # of small panels that belong together
_STYLE: Any = {"font.size": 8.5, "svg.fonttype": "none", "svg.hashsalt": "opmix", "axes.titlesize": 9}


def figures(storage: Storage, formats: Sequence[str] = FORMATS, directory: str = "figures") -> list[str]:
    """Write every figure of a run as files.

    Args:
        storage: the run's output, finished or not.
        formats: endings that matplotlib knows: `png`, `svg`, `pdf`, ...
        directory: inside the output.

    Returns:
        Paths or URIs of the files.

    Raises:
        UserError: there is no run, or an unknown format.
    """
    known = Figure().canvas.get_supported_filetypes()
    for name in formats:
        if name not in known:
            raise UserError(
                "no such image format", key="formats", value=name, remedy=f"known: {', '.join(known)}"
            )
    written = []
    for group in _groups(gather(storage)):
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
            drawn = _draw(group)
            for ending in formats:
                name = f"{directory}/{group.name}.{ending}"
                storage.write_bytes(name, _bytes(drawn, ending))
                written.append(storage.path(name))
    return written


@dataclass(frozen=True)
class _Group:
    """Panels in one file."""

    name: str
    panels: list[Panel]


def _groups(run: RunFiles) -> Iterator[_Group]:
    many = [panel for panel in [run_panels.objective_over_time(run), *run_panels.set_losses(run)] if panel]
    single = [run_panels.mixture_over_time(run), run_panels.training_loss(run), run_panels.gains(run)]
    single += [run_panels.delivered(run), run_panels.cost(run)]
    yield from (_Group(panel.name, [panel]) for panel in single if panel)
    if many:
        yield _Group("held-out-loss", many)
    for files in run.decisions:
        check = check_law(files)
        law = decision_panels.law_panels(files, check)
        mixtures = decision_panels.mixtures(files, run.tokens)
        rest = [
            *([mixtures] if mixtures else []),
            *decision_panels.decision_panels(files, run.judged(files), None),
        ]
        yield from (_Group(f"decision-{files.name}-{panel.name}", [panel]) for panel in rest)
        if law:
            yield _Group(f"decision-{files.name}-law", law)


def _draw(group: _Group) -> Figure:
    columns = min(COLUMNS, len(group.panels))
    lines = -(-len(group.panels) // columns)
    first = group.panels[0]
    width = 7.5 if first.wide else 3.6 * columns if columns > 1 else 4.6
    height = 1.1 + 0.32 * len(first.categories) if first.categories else 2.7
    figure = Figure(figsize=(width, height * lines), layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, (axes, panel) in enumerate(zip(grid, group.panels, strict=False)):
        _panel(axes, panel)
        if place == columns - 1 and len(panel.entries()) > 1:  # small panels share one legend
            if first.categories:  # what is written beside bars needs the room at their right
                figure.legend(fontsize=7, frameon=False, loc="outside lower left", ncols=3)
            else:
                axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        if len(group.panels) > 1:
            axes.set_title(_whole(panel.title, 34), loc="left", fontweight="bold")
        else:
            figure.suptitle(_plain(panel.title), x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    for axes in grid[len(group.panels) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    x_limits, y_limits = panel.limits()
    axes.set_xlim(*x_limits)
    axes.set_ylim(*y_limits)
    axes.set_xlabel(_plain(panel.x_label), color=LIGHT["soft"])
    axes.set_ylabel(_plain(panel.y_label), color=LIGHT["soft"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["line"])
    axes.tick_params(length=0)
    axes.grid(axis="x" if panel.categories else "y", color=LIGHT["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    places = ticks(*x_limits, 5, panel.x_scale)
    axes.set_xticks(places, tick_labels(places, panel.x_scale))
    if panel.categories:
        axes.set_yticks(range(len(panel.categories)), [_whole(name) for name in panel.categories])
        axes.invert_yaxis()
    else:
        places = ticks(*y_limits, 5, panel.y_scale)
        axes.set_yticks(places, tick_labels(places, panel.y_scale))
    for mark in panel.marks:
        _mark(axes, mark)


def _mark(axes: Axes, mark: Mark) -> None:
    label = _whole(getattr(mark, "label", "")) or "_nolegend_"
    if isinstance(mark, Line):
        dashes = "--" if mark.dashed else "-"
        draw = "steps-post" if mark.steps else "default"
        axes.plot(
            mark.x,
            mark.y,
            color=light(mark.colour),
            linestyle=dashes,
            drawstyle=draw,
            label=label,
            linewidth=1.5,
        )
    elif isinstance(mark, Dots):
        face = "white" if mark.hollow else light(mark.colour)
        axes.scatter(mark.x, mark.y, s=22, color=face, edgecolors=light(mark.colour), label=label, zorder=3)
    elif isinstance(mark, Rects):
        boxes = [box for box in mark.boxes if np.isfinite(box).all()]
        for place, (x0, x1, y0, y1) in enumerate(boxes):
            named = label if place == 0 else "_nolegend_"
            patch = Rectangle((x0, y0), x1 - x0, y1 - y0, color=light(mark.colour), linewidth=0, label=named)
            axes.add_patch(patch)
    elif isinstance(mark, Whiskers):
        draw_lines = axes.hlines if mark.lying else axes.vlines
        draw_lines(mark.at, mark.low, mark.high, color=light(mark.colour), linewidth=1.2)
    elif isinstance(mark, Rule):
        draw_rule = axes.axvline if mark.axis == "x" else axes.axhline
        draw_rule(mark.value, color=LIGHT["soft"], linewidth=0.8, linestyle=":")
    elif isinstance(mark, Texts):
        for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True):
            if np.isfinite([x, y]).all():
                axes.annotate(
                    _plain(text), (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
                )


def _plain(text: str) -> str:
    """Text in which a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def _whole(text: str, most: int = 28) -> str:
    """All of a name, in lines."""
    return _plain("\n".join(lines_of(text.lstrip("_"), most)))  # a leading underscore hides a label


def _bytes(figure: Figure, ending: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else None
    figure.savefig(stream, format=ending, dpi=DPI, metadata=metadata)
    return stream.getvalue()


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
    silent = (
        '<p id="silent" class="warn" role="status" hidden>No answer: the run or the command that serves this page has '
        "ended. What stands here is what was known last.</p>"
    )
    body = f'{silent}<div id="now" aria-live="polite">{content}</div>'
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
