"""Fenced blocks of the README, the other pages beside it, and every page in docs/."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block: its page, its language, the line it begins at, its text."""

    page: str
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """Every block, or those of one language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page.name, match[1], line, match[2]))
    return [block for block in found if language is None or block.language == language]


def commands(name: str) -> list[tuple[str, list[str]]]:
    """Place and arguments of every call of a program in blocks without a language or of a shell."""
    found = []
    for block in blocks():
        if block.language not in ("", "bash", "sh", "shell", "console"):
            continue
        text = block.text.replace("\\\n", " ")
        for offset, line in enumerate(text.splitlines(), start=1):
            plain = line.removeprefix("$ ").strip()
            before, separator, after = plain.partition(" -- ")
            for part in (before, after) if separator else (before,):
                if part.strip().startswith(f"{name} "):
                    words = shlex.split(part, comments=True)
                    found.append((f"{block.page}:{block.line + offset}", words[1:]))
    return found
