"""A panel on the page: caption, legend and drawing."""

from __future__ import annotations

from collections.abc import Iterable

from opmix_ray.draw.html import esc
from opmix_ray.draw.panel import COLOURS, Entry, Panel
from opmix_ray.draw.svg import HALF, WIDE, WIDTH, draw


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


def _swatch(entry: Entry) -> str:
    kind = str(entry.colour % COLOURS) if isinstance(entry.colour, int) else f"-{entry.colour}"
    return f"{kind} hollow" if entry.hollow else kind
