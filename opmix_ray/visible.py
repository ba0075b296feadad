"""Text from data and files of others, made harmless for a terminal: what would act there is shown instead.

visible("a\x1b[2Jb")     # 'a\\u001b[2Jb'
"""

from __future__ import annotations

_KEPT = "\n\t"
# C0, DEL, C1, marks that change the direction of what follows, and line ends that only some programs know
_ACTING = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x061C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),  # halves of characters, in names that are not UTF-8: these cannot be printed
]
_SHOWN = {code: f"\\u{code:04x}" for code in _ACTING if chr(code) not in _KEPT}


def visible(text: str) -> str:
    """The text with every character that acts on a terminal written as JSON would write it."""
    return text.translate(_SHOWN)
