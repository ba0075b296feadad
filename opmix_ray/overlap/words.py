"""Text without what a copy may change: case, punctuation, blank space, and the shape of the row that holds it.

>>> normal("Is it 4?\\n\\nIt is:  FOUR!")
'is it 4 it is four'
"""

from __future__ import annotations

import re
import unicodedata

# Scripts without spaces between words are compared character by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_BREAK = re.compile(r"[^a-z0-9]+")


def normal(text: str) -> str:
    """The words of a text in lower case, with one blank between them."""
    if text.isascii():
        return _BREAK.sub(" ", text.lower()).strip()
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
