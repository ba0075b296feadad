"""A panel as inline SVG, and the figure around it: caption, legend and drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from opmix_ray.draw.html import esc, lines_of
from opmix_ray.draw.numbers import tick_labels, ticks
from opmix_ray.draw.panel import (
    COLOURS,
    Colour,
    Dots,
    LegendEntry,
    Line,
    Mark,
    Panel,
    Rects,
    Rule,
    Texts,
    Whiskers,
)

WIDTH, HALF, WIDE = 360, 550, 1080  # units; a unit is a pixel at the width the panels are laid out for
HEIGHT, ROW, LINE = 210, 30, 13  # of a panel of numbers, of one category, of a line of its name
CHARACTER = 6.6  # width of one at the font size of tick labels
_DASHES = " d"


def draw(panel: Panel, *, width: int | None = None) -> str:
    """The panel as an `<svg>` element that scales with its box."""
    frame = _Frame.of(panel, width or (WIDE if panel.wide else WIDTH))
    if panel.empty():
        parts = [f'<text x="{frame.width / 2}" y="{frame.height / 2}" class="mid">no finite values</text>']
    else:
        parts = [*_axes(panel, frame), *(part for mark in panel.marks for part in _mark(mark, frame))]
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{esc(panel.title)}">'
        f"<desc>{esc(panel.description)}</desc>{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Frame:
    """Where values land: the plot area and the limits."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    downwards: bool
    x_ticks: list[float]
    y_ticks: list[float]

    @classmethod
    def of(cls, panel: Panel, width: int) -> _Frame:
        x_limits, y_limits = panel.limits()
        count = len(panel.categories)
        y_ticks = [] if count else ticks(*y_limits, 5, panel.y_scale)
        labels = panel.categories or tick_labels(y_ticks, panel.y_scale)
        left = 10 + CHARACTER * max((len(label) for label in labels), default=1)
        texts = [text for mark in panel.marks if isinstance(mark, Texts) for text in mark.texts]
        right = width - 14 - (CHARACTER * max(map(len, texts)) if texts else 0)
        left = min(left, 0.36 * width)
        lines = max((len(wrapped(name, left)) for name in panel.categories), default=1)
        row = max(ROW, 4 + LINE * lines)
        height = 46 + row * count if count else HEIGHT + (30 if width == WIDE else 0)
        return cls(
            width=width,
            height=height,
            left=left,
            right=right,
            top=8.0 if count or not panel.y_label else 24.0,
            bottom=height - (38.0 if panel.x_label else 22.0),
            x_limits=x_limits,
            y_limits=y_limits,
            downwards=bool(count),
            x_ticks=ticks(*x_limits, max(2, int((right - left) / 50)), panel.x_scale),
            y_ticks=y_ticks,
        )

    def x(self, value: float) -> float:
        low, high = self.x_limits
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_limits
        part = (value - low) / (high - low)
        return self.top + (part if self.downwards else 1 - part) * (self.bottom - self.top)


def _axes(panel: Panel, frame: _Frame) -> Iterable[str]:
    for value, label in zip(frame.x_ticks, tick_labels(frame.x_ticks, panel.x_scale), strict=True):
        x = _n(frame.x(value))
        if panel.categories:
            yield f'<path class="g" d="M{x} {_n(frame.top)}V{_n(frame.bottom)}"/>'
        inside = _n(min(frame.x(value), frame.width - len(label) * CHARACTER / 2))
        yield f'<text x="{inside}" y="{_n(frame.bottom + 14)}" class="mid">{esc(label)}</text>'
    for value, label in zip(frame.y_ticks, tick_labels(frame.y_ticks, panel.y_scale), strict=True):
        y = frame.y(value)
        yield f'<path class="g" d="M{_n(frame.left)} {_n(y)}H{_n(frame.right)}"/>'
        yield f'<text x="{_n(frame.left - 6)}" y="{_n(y + 4)}" class="end">{esc(label)}</text>'
    for place, name in enumerate(panel.categories):
        lines = wrapped(name, frame.left)
        top = frame.y(place) + 4 - LINE * (len(lines) - 1) / 2
        for number, text in enumerate(lines):
            at = f'x="{_n(frame.left - 6)}" y="{_n(top + LINE * number)}"'
            yield f'<text {at} class="end">{esc(text)}</text>'
    if panel.x_label:
        middle = (frame.left + frame.right) / 2
        yield f'<text x="{_n(middle)}" y="{frame.height - 6}" class="mid q">{esc(panel.x_label)}</text>'
    if panel.y_label and not panel.categories:
        yield f'<text x="2" y="11" class="q">{esc(panel.y_label)}</text>'


def wrapped(name: str, left: float) -> list[str]:
    """A category's name in lines that fit beside the plot area, broken at a mark where there is one."""
    return lines_of(name, max(4, int((left - 8) / CHARACTER)))


def _mark(mark: Mark, frame: _Frame) -> Iterable[str]:
    if isinstance(mark, Line):
        return _line(mark, frame)
    if isinstance(mark, Dots):
        return _dots(mark, frame)
    if isinstance(mark, Rects):
        return _rects(mark, frame)
    if isinstance(mark, Whiskers):
        return _whiskers(mark, frame)
    if isinstance(mark, Rule):
        return _rule(mark, frame)
    return [
        f'<text x="{_n(frame.x(x) + 5)}" y="{_n(frame.y(y) + 4)}">{esc(text)}</text>'
        for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True)
        if _known(x, y)
    ]


def _line(mark: Line, frame: _Frame) -> Iterable[str]:
    path, before = [], False
    for x, y in zip(mark.x, mark.y, strict=True):
        if not _known(x, y):
            before = False
            continue
        px, py = _n(frame.x(x)), _n(frame.y(y))
        path.append(f"H{px}V{py}" if before and mark.steps else f"{'L' if before else 'M'}{px} {py}")
        before = True
    if path:
        dashes = _DASHES if mark.dashed else ""
        yield f'<path class="l s{_colour(mark.colour)}{dashes}" d="{"".join(path)}"/>'
    if sum(_known(x, y) for x, y in zip(mark.x, mark.y, strict=True)) == 1:
        yield from _dots(Dots(mark.x, mark.y, mark.colour), frame)


def _dots(mark: Dots, frame: _Frame) -> Iterable[str]:
    kind = f"o s{_colour(mark.colour)}" if mark.hollow else f"p f{_colour(mark.colour)}"
    for place, (x, y) in enumerate(zip(mark.x, mark.y, strict=True)):
        if _known(x, y):
            place_at = f'cx="{_n(frame.x(x))}" cy="{_n(frame.y(y))}"'
            yield f'<circle class="{kind}" {place_at} r="4">{_title(mark.titles, place)}</circle>'


def _rects(mark: Rects, frame: _Frame) -> Iterable[str]:
    for place, (x0, x1, y0, y1) in enumerate(mark.boxes):
        if not _known(x0, x1, y0, y1):
            continue
        left, right = sorted((frame.x(x0), frame.x(x1)))
        top, bottom = sorted((frame.y(y0), frame.y(y1)))
        size = f'width="{_n(max(right - left, 0.5))}" height="{_n(bottom - top)}"'
        yield (
            f'<rect class="b f{_colour(mark.colour)}" x="{_n(left)}" y="{_n(top)}" {size}>'
            f"{_title(mark.titles, place)}</rect>"
        )


def _whiskers(mark: Whiskers, frame: _Frame) -> Iterable[str]:
    path = []
    for at, low, high in zip(mark.at, mark.low, mark.high, strict=True):
        if not _known(at, low, high):
            continue
        if mark.lying:
            y, x0, x1 = frame.y(at), frame.x(low), frame.x(high)
            path.append(f"M{_n(x0)} {_n(y)}H{_n(x1)}M{_n(x0)} {_n(y - 4)}v8M{_n(x1)} {_n(y - 4)}v8")
        else:
            path.append(f"M{_n(frame.x(at))} {_n(frame.y(low))}V{_n(frame.y(high))}")
    if path:
        yield f'<path class="w s{_colour(mark.colour)}" d="{"".join(path)}"/>'


def _rule(mark: Rule, frame: _Frame) -> Iterable[str]:
    low, high = frame.x_limits if mark.axis == "x" else frame.y_limits
    if not low <= mark.value <= high:
        return
    if mark.axis == "y":
        yield f'<path class="r" d="M{_n(frame.left)} {_n(frame.y(mark.value))}H{_n(frame.right)}"/>'
        return
    x = frame.x(mark.value)
    yield f'<path class="r" d="M{_n(x)} {_n(frame.top)}V{_n(frame.bottom)}"/>'
    if mark.label:
        late = x + CHARACTER * len(mark.label) > frame.right
        place = f'x="{_n(x - 3)}" class="end h"' if late else f'x="{_n(x + 3)}" class="h"'
        yield f'<text {place} y="{_n(frame.top + 10)}">{esc(mark.label)}</text>'


def _title(titles: Sequence[str], place: int) -> str:
    return f"<title>{esc(titles[place])}</title>" if place < len(titles) else ""


def _colour(colour: Colour) -> str:
    return str(colour % COLOURS) if isinstance(colour, int) else f"-{colour}"


def _known(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def figure(panel: Panel | None, *, legend: bool = True, width: int | None = None) -> str:
    """One figure; one that is not small is drawn a second time for narrow screens.

    Args:
        panel: None gives nothing.
        legend: whether marks are named.
        width: units; none: as wide as the page for a wide panel, else small.
    """
    if panel is None:
        return ""
    width = width or (WIDE if panel.wide else WIDTH)
    note = f"<small>{esc(panel.note)}</small>" if panel.note else ""
    drawing = draw(panel, width=WIDTH)
    if width > WIDTH:
        drawing = f'<div class="broad">{draw(panel, width=width)}</div><div class="narrow">{drawing}</div>'
    lines = _legend(panel) if legend else ""
    kind = ' class="wide"' if width == WIDE else ' class="half"' if width > WIDTH else ""
    return f"<figure{kind}><figcaption>{esc(panel.title)}{note}</figcaption>{lines}{drawing}</figure>"


def grid(panels: Iterable[Panel | None], *, legend: bool = True) -> str:
    """Figures side by side that together are as wide as the page: one, two, or three and more in rows of three."""
    shown = [panel for panel in panels if panel is not None]
    width = {1: WIDE, 2: HALF}.get(len(shown), WIDTH)
    drawn = "".join(figure(panel, legend=legend, width=width) for panel in shown)
    return f'<div class="panels">{drawn}</div>' if drawn else ""


def _legend(panel: Panel) -> str:
    entries = panel.entries()
    if len(entries) < 2:
        return ""
    lines = "".join(f'<li><i class="k{_swatch(entry)}"></i>{esc(entry.label)}</li>' for entry in entries)
    return f'<ul class="legend">{lines}</ul>'


def _swatch(entry: LegendEntry) -> str:
    kind = str(entry.colour % COLOURS) if isinstance(entry.colour, int) else f"-{entry.colour}"
    return f"{kind} hollow" if entry.hollow else kind
