"""Colours, light and dark: the page takes them as CSS variables, image files take the light ones."""

from __future__ import annotations

from opmix_ray.draw.panel import COLOURS, Colour

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
