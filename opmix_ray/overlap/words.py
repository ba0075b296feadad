"""Text without what a copy may change: case, punctuation, blank space, markup, escapes, and the shape of its row.

>>> normal("Is it 4?\\n\\nIt is:  FOUR!")
'is it 4 it is four'
>>> normal(bare("<p>Is it 4?</p><p>It <b>is</b>:&nbsp;fo\\u200bur!"))
'is it 4 it is four'
"""

from __future__ import annotations

import html
import re
import unicodedata

# Scripts without spaces between words are compared character by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_BREAK = re.compile(r"[^a-z0-9]+")
_INVISIBLE = re.compile(  # soft hyphens, joiners, marks of direction, selectors of variants
    "[\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
_INSIDE = re.compile(
    r"</?(?:a|abbr|b|code|em|font|i|mark|s|small|span|strong|sub|sup|tt|u)(?:\s[^<>]*)?>", re.IGNORECASE
)
_BETWEEN = re.compile(
    r"</?(?:article|blockquote|body|br|center|dd|div|dl|dt|figure|footer|h[1-6]|head|header|hr|html|img|li|main|nav|ol|p|pre"
    r"|section|table|tbody|td|th|thead|title|tr|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrt])")


def normal(text: str) -> str:
    """The words of a text in lower case, with one blank between them; what is held out is chosen by a hash of them."""
    if text.isascii():
        return _BREAK.sub(" ", text.lower()).strip()
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def bare(text: str) -> str:
    """The text without HTML, escapes of JSON and invisible characters."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _BETWEEN.sub(" ", _INSIDE.sub("", text))
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    return text if text.isascii() else _INVISIBLE.sub("", text).replace("_", " ")


def _unescaped(found: re.Match[str]) -> str:
    """The character that an escape in JSON stands for; a blank for a line's end, and for a half of a pair."""
    code = int(found[1] or "20", 16)
    return " " if 0xD800 <= code < 0xE000 else chr(code)
