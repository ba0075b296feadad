"""Reading a page: whether its tags balance, what it says, what it refers to."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        errors: tags that do not balance.
        tags: every tag with its attributes.
        text: what a person reads, spaces collapsed.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.errors: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(source)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self._open]
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self._words.append(data)

    def names(self) -> set[str]:
        """Every tag there is."""
        return {tag for tag, _ in self.tags}

    def references(self) -> list[str]:
        """Everything a browser would fetch."""
        keys = ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "style")
        return [str(attrs[key]) for _, attrs in self.tags for key in keys if key in attrs]


def fetched_by_style(source: str) -> list[str]:
    """What style sheets would fetch."""
    return re.findall(r"url\(|@import", source)
