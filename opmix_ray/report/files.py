"""The report's figures as image files, drawn by matplotlib on white."""

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

from opmix_ray.draw.html import lines_of
from opmix_ray.draw.numbers import tick_labels, ticks
from opmix_ray.draw.panel import LIGHT, Dots, Line, Mark, Panel, Rects, Rule, Texts, Whiskers, light
from opmix_ray.errors import UserError
from opmix_ray.report import decision_panels, run_panels, side_by_side
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.law_check import check_law
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
        mixtures = side_by_side.panel(files, run.tokens)
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
