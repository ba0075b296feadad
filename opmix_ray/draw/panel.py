"""A figure as data: axes and marks, drawn by `svg.py` for the page and by `files.py` for image files.

Colours, light and dark: the page takes them as CSS variables, image files take the light ones.

Values that are not finite are left out of lines, dots and ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Colour = int | Literal["ink", "muted", "accent", "warn"]  # a number: one of the categorical colours
COLOURS = 8
Box = tuple[float, float, float, float]  # x0, x1, y0, y1
Scale = Literal["number", "percent", "whole"]


@dataclass(frozen=True)
class Line:
    """Points joined by a line, broken where a value is missing; `label` goes into the legend."""

    x: Sequence[float]
    y: Sequence[float]
    colour: Colour = "accent"
    label: str = ""
    dashed: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Dots:
    """Points, with a hover text each; hollow ones are set apart from full ones."""

    x: Sequence[float]
    y: Sequence[float]
    colour: Colour = "accent"
    label: str = ""
    hollow: bool = False
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Rects:
    """Filled boxes, with a hover text each."""

    boxes: Sequence[Box]
    colour: Colour = "accent"
    label: str = ""
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Whiskers:
    """Intervals: from `low` to `high`, upright at `at`, or lying at height `at`."""

    at: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: Colour = "muted"
    lying: bool = False


@dataclass(frozen=True)
class Rule:
    """A thin line across the figure where x (or y) has a value, named where there is room."""

    value: float
    axis: Literal["x", "y"] = "x"
    label: str = ""


@dataclass(frozen=True)
class Texts:
    """Short texts to the right of points."""

    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str]


Mark = Line | Dots | Rects | Whiskers | Rule | Texts


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend."""

    label: str
    colour: Colour
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure.

    Args:
        name: file name, without an ending.
        title: what it shows.
        description: the same in a sentence, for those who cannot see it.
        x_label, y_label: quantity and unit.
        marks: drawn in order.
        categories: names along the y axis, at heights 0, 1, ... from the top; none: y is a number.
        x_range, y_range: limits; none: those of the marks.
        x_scale, y_scale: how tick labels are written.
        wide: across the page.
        note: shown below the title.
    """

    name: str
    title: str
    description: str
    marks: Sequence[Mark]
    x_label: str = ""
    y_label: str = ""
    categories: Sequence[str] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_scale: Scale = "number"
    y_scale: Scale = "number"
    wide: bool = False
    note: str = ""

    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Range of x and of y, never empty."""
        xs, ys = [], []
        for mark in self.marks:
            x, y = _extent(mark)
            xs += x
            ys += y
        x_range = self.x_range or _padded(xs)
        if self.categories:
            return x_range, (-0.5, len(self.categories) - 0.5)
        return x_range, self.y_range or _padded(ys)

    def entries(self) -> list[LegendEntry]:
        """The legend: every labelled mark once."""
        marks = [mark for mark in self.marks if isinstance(mark, Line | Dots | Rects) and mark.label]
        found = {
            mark.label: LegendEntry(mark.label, mark.colour, isinstance(mark, Dots) and mark.hollow)
            for mark in marks
        }
        return list(found.values())

    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(_extent(mark)) for mark in self.marks if not isinstance(mark, Rule))


def _extent(mark: Mark) -> tuple[list[float], list[float]]:
    """Finite x and y values of a mark."""
    if isinstance(mark, Rects):
        return _finite(v for b in mark.boxes for v in b[:2]), _finite(v for b in mark.boxes for v in b[2:])
    if isinstance(mark, Whiskers):
        ends, at = _finite([*mark.low, *mark.high]), _finite(mark.at)
        return (ends, at) if mark.lying else (at, ends)
    if isinstance(mark, Rule):
        return ([mark.value], []) if mark.axis == "x" else ([], [mark.value])
    both = [(x, y) for x, y in zip(mark.x, mark.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in both], [y for _, y in both]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _padded(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        room = abs(high) * 0.01 or 0.5
        return low - room, high + room
    room = 0.05 * (high - low)
    return low - room, high + room


LIGHT = {
    "bg": "#ffffff",
    "fg": "#1d2126",
    "soft": "#5c6570",
    "line": "#dde1e6",
    "box": "#f5f7f9",
    "accent": "#1f6fd0",
    "warn": "#a8500a",
    "warnbox": "#fff4e8",
    "bad": "#b3151f",
    "badbox": "#fdeeee",
    "muted": "#9aa3ad",
}
DARK = {
    "bg": "#14171b",
    "fg": "#e6e9ed",
    "soft": "#a2abb6",
    "line": "#343b44",
    "box": "#1d2228",
    "accent": "#6fb0ff",
    "warn": "#f0a868",
    "warnbox": "#33261a",
    "bad": "#ff8a84",
    "badbox": "#3a1d1e",
    "muted": "#8e98a4",
}
SERIES_LIGHT = ["#2f74c0", "#e08a1e", "#1f9a75", "#c2408d", "#7d62b8", "#8a7030", "#2aa3bb", "#cf5f4b"]
SERIES_DARK = ["#6aa8ee", "#f2ab52", "#46c39b", "#ec7fbf", "#ab95e6", "#c6ab66", "#58c8dc", "#f28f7d"]


def css() -> str:
    """The variables, and one class per colour for strokes (`s0`), fills (`f0`) and swatches (`k0`)."""
    names = {str(i): f"c{i}" for i in range(COLOURS)}
    names |= {"-ink": "fg", "-muted": "muted", "-accent": "accent", "-warn": "warn"}
    classes = "".join(
        f".s{key}{{stroke:var(--{name})}}.f{key}{{fill:var(--{name})}}.k{key}{{background:var(--{name})}}\n"
        for key, name in names.items()
    )
    dark = f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK, SERIES_DARK)}}}}}\n"
    paper = f"@media print{{:root{{{_variables(LIGHT, SERIES_LIGHT)}}}}}\n"
    return f":root{{color-scheme:light dark;{_variables(LIGHT, SERIES_LIGHT)}}}\n{dark}{paper}{classes}"


def light(colour: Colour) -> str:
    """A colour on white."""
    if isinstance(colour, int):
        return SERIES_LIGHT[colour % COLOURS]
    return LIGHT["fg" if colour == "ink" else colour]


def _variables(named: dict[str, str], series: list[str]) -> str:
    found = named | {f"c{i}": colour for i, colour in enumerate(series)}
    return ";".join(f"--{name}:{colour}" for name, colour in found.items())
