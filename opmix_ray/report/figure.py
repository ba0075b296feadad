"""A panel on the page: caption, legend and drawing."""

from __future__ import annotations

from collections.abc import Iterable

from opmix_ray.report.html import esc
from opmix_ray.report.panel import COLOURS, Colour, Panel
from opmix_ray.report.svg import WIDE, WIDTH, draw


def figure(panel: Panel | None) -> str:
    """One figure; a wide one is drawn a second time for narrow screens."""
    if panel is None:
        return ""
    note = f"<small>{esc(panel.note)}</small>" if panel.note else ""
    if panel.wide:
        drawing = f'<div class="broad">{draw(panel, width=WIDE)}</div><div class="narrow">{draw(panel, width=WIDTH)}</div>'
    else:
        drawing = draw(panel)
    kind = ' class="wide"' if panel.wide else ""
    return (
        f"<figure{kind}><figcaption>{esc(panel.title)}{note}</figcaption>{_legend(panel)}{drawing}</figure>"
    )


def grid(panels: Iterable[Panel | None]) -> str:
    """Figures side by side, as many as there is room for."""
    drawn = "".join(figure(panel) for panel in panels)
    return f'<div class="panels">{drawn}</div>' if drawn else ""


def _legend(panel: Panel) -> str:
    entries = panel.entries()
    if len(entries) < 2:
        return ""
    lines = "".join(
        f'<li><svg viewBox="0 0 11 11" aria-hidden="true"><rect class="f{_swatch(colour)}" width="11" height="11" rx="2"/>'
        f"</svg>{esc(label)}</li>"
        for label, colour in entries
    )
    return f'<ul class="legend">{lines}</ul>'


def _swatch(colour: Colour) -> str:
    return str(colour % COLOURS) if isinstance(colour, int) else f"-{colour}"
