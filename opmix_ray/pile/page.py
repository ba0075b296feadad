"""discover.html: the domains that were found in a pile, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix_ray.draw.figure import figure
from opmix_ray.draw.html import esc, items, paragraph, section, table, tiles
from opmix_ray.draw.numbers import count, fixed, percent, plural
from opmix_ray.draw.panel import Panel, Rects
from opmix_ray.draw.shell import shell


def render(found: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        found: of discover.json.
    """
    domains = found["domains"]
    files = plural(len(found["files"]), "file")
    lead = f"{found['documents']:,} documents of {files} in {plural(len(domains), 'domain')}"
    lead += f", as those of {found['like']}." if found["like"] else "."
    body = [f"<h1>{esc('Domains in a pile')}</h1>", paragraph(lead, kind="lead"), _tiles(found)]
    body.append(section("Sizes", figure(_sizes(domains)) + _table(domains), name="sizes"))
    examples = "".join(_examples(domain) for domain in domains)
    body.append(section("Examples", examples, name="examples"))
    if found["notes"]:
        body.append(section("Notes", items(found["notes"]), name="notes"))
    footer = (
        "A domain is what is written in the same words and characters. Stability: the mean over pairs of fits on "
        "random halves of a sample, 1 where both halves find the same domains, 0 for domains by chance."
    )
    return shell("Domains in a pile", f"<main>{''.join(body)}</main>", footer=footer, style=_STYLE)


_STYLE = (
    "blockquote{white-space:pre-wrap;overflow-wrap:anywhere;"
    "margin:.5rem 0;padding-left:.8rem;border-left:3px solid}"
)


def _tiles(found: Mapping[str, Any]) -> str:
    boxes = [(count(found["documents"]), "documents"), (count(found["characters"]), found["unit"])]
    stability = found["stability"]
    if stability is not None:
        boxes.append((fixed(stability["adjusted_rand"], 2), "stability: adjusted Rand index"))
        boxes.append((fixed(stability["mutual_information"], 2), "stability: mutual information"))
    return tiles(boxes)


def _sizes(domains: list[dict[str, Any]]) -> Panel:
    shares = [domain["share"] for domain in domains]
    return Panel(
        name="sizes",
        title="Share of the pile",
        description="How much of the pile each domain is",
        marks=[Rects([(0.0, share, k - 0.3, k + 0.3) for k, share in enumerate(shares)], 0)],
        x_label="share of characters or token ids",
        categories=[domain["name"] for domain in domains],
        x_range=(0.0, 1.05 * max([*shares, 1e-6])),
        x_scale="percent",
        wide=True,
    )


def _table(domains: list[dict[str, Any]]) -> str:
    rows = [
        (d["name"], ", ".join(d["words"]), f"{d['documents']:,}", f"{d['characters']:,}", percent(d["share"]))
        for d in domains
    ]
    head = ("domain", "typical words", "documents", "characters or ids", "share")
    return table(head, rows, caption="Domains, the largest first", text_columns=2)


def _examples(domain: Mapping[str, Any]) -> str:
    quotes = "".join(f"<blockquote>{esc(text)}</blockquote>" for text in domain["examples"])
    return section(domain["name"], quotes or paragraph("No document."), level=3)
