"""The page around a body: one style sheet, one script for sorting tables, nothing from the network."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from opmix_ray.draw.html import esc
from opmix_ray.draw.panel import css


def shell(
    title: str, body: str, *, footer: str = "", style: str = "", script: str = "", live: bool = False
) -> str:
    """A whole page as one HTML text, whose browser runs no script but ours.

    Args:
        title: plain text.
        body: HTML of everything above the footer.
        footer: plain text.
        style: rules beside the common ones.
        script: beside the one that sorts tables.
        live: whether the page may ask its own server for news.
    """
    ours = resource("sort.js") + script
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    allowed += "; connect-src 'self'" if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{css()}{resource('style.css')}{style}</style></head>\n"
        f"<body>{body}\n<footer>{esc(footer)}</footer>\n<script>{ours}</script></body></html>\n"
    )


def resource(name: str) -> str:
    """A style sheet or script that ships."""
    return files("opmix_ray.draw").joinpath(name).read_text(encoding="utf-8")
