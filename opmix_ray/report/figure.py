"""A panel on the page: caption, legend and drawing."""

from __future__ import annotations

from collections.abc import Iterable

from opmix_ray.report.html import esc
from opmix_ray.report.panel import COLOURS, Entry, Panel
from opmix_ray.report.svg import WIDE, WIDTH, draw


def figure(panel: Panel | None, *, legend: bool = True) -> str:
    """One figure; a wide one is drawn a second time for narrow screens."""
    if panel is None:
        return ""
    note = f"<small>{esc(panel.note)}</small>" if panel.note else ""
    if panel.wide:
        broad, narrow = draw(panel, width=WIDE), draw(panel, width=WIDTH)
        drawing = f'<div class="broad">{broad}</div><div class="narrow">{narrow}</div>'
    else:
        drawing = draw(panel)
    lines = _legend(panel) if legend else ""
    kind = ' class="wide"' if panel.wide else ""
    return f"<figure{kind}><figcaption>{esc(panel.title)}{note}</figcaption>{lines}{drawing}</figure>"


def grid(panels: Iterable[Panel | None], *, legend: bool = True) -> str:
    """Figures side by side, as many as there is room for."""
    drawn = "".join(figure(panel, legend=legend) for panel in panels)
    return f'<div class="panels">{drawn}</div>' if drawn else ""


def _legend(panel: Panel) -> str:
    entries = panel.entries()
    if len(entries) < 2:
        return ""
    lines = "".join(
        f'<li title="{esc(entry.label)}"><i class="k{_swatch(entry)}"></i>{esc(entry.label)}</li>'
        for entry in entries
    )
    return f'<ul class="legend">{lines}</ul>'


def _swatch(entry: Entry) -> str:
    kind = str(entry.colour % COLOURS) if isinstance(entry.colour, int) else f"-{entry.colour}"
    return f"{kind} hollow" if entry.hollow else kind
