"""What may be shown of text and settings: without passwords and keys, and without characters that act on a terminal.

hidden({"wandb": {"api_key": "abc"}})              # {'wandb': {'api_key': '***'}}
hidden("mysql+pymysql://me:pw@host/db")            # 'mysql+pymysql://***@host/db'

visible("a\x1b[2Jb")     # 'a\\u001b[2Jb'
"""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_NAME = re.compile(
    r"secret|passw(or)?d|passphrase|(^|_)(pass|passwd|pwd?)$|token|credential|signature|(^|_)sig$|(^|_)sas(_|$)"
    r"|(^|_)auth(_|$)|authorization|bearer|cookie|session_?id|(^|_)keys?(_?id)?$|(api|access|account|private)_?key"
    r"|webhook",
    re.IGNORECASE,
)
# Names that hold such a word and are no secret: files that hold one, numbers of tokens, keys of a table.
_HARMLESS = re.compile(r"_(file|path|dir|name|column|url|uri|type)$|tokeniz|(^|_)tokens(_|$)", re.IGNORECASE)
# What may stand before a host: `name:password@`, also with an encoded colon; a password may hold `/`, `?`, `#`, `@`.
_PAIR = re.compile(
    r"^([A-Za-z][\w+.-]*:/{1,2})(?!\[)[^/@:?#]*(?::(?!\d+(?:[/?#]|$))|%3[Aa])[^@]*@(?:[^/?#@]*@)*"
)
# Over HTTP a name alone is a token; in other URIs it is a bucket or a container.
_ALONE = re.compile(r"^((?:https?|git\+https?):/{1,2})[^/@?#]+@", re.IGNORECASE)
_HOOK = re.compile(
    r"(//hooks\.slack\.com/services/|//discord(?:app)?\.com/api/webhooks/)[^?#]+", re.IGNORECASE
)
_URI = re.compile(r"[A-Za-z][\w+.-]*:/{1,2}[^\s'\"<>)\]]*[^\s'\"<>)\]:;,.]")
# `name=value` and `"name": "Bearer value"` inside a text
_TOLD = re.compile(
    r"""(?<![\w.-])(-{0,2}[A-Za-z][\w.-]*)(["']?\s*[:=]\s*["']?)((?:bearer|basic|token)\s+)?([^\s"',;&|{}\[\]]+)""",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether something of this name, as it stands in a URI or a configuration, is a secret."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unquote(name).strip().replace("-", "_"))  # secretKey
    return bool(_NAME.search(plain)) and not _HARMLESS.search(plain)


def in_uri(uri: str) -> str:
    """The URI with `***` in the place of a name and password, and of every secret in its query or fragment."""
    uri = _ALONE.sub(rf"\1{HIDDEN}@", _PAIR.sub(rf"\1{HIDDEN}@", uri))
    head, mark, rest = re.match(
        r"^([^?#;]*)([?#;]?)(.*)$", _HOOK.sub(rf"\1{HIDDEN}", uri), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    return head + mark + re.sub(r"([^&;=#?]+)=([^&;#]+)", _parameter, rest)


def _parameter(found: re.Match[str]) -> str:
    inside = unquote(found[2])  # such as a whole connection string
    tells = is_secret(found[1]) or (inside != found[2] and in_text(inside) != inside)
    return f"{found[1]}={HIDDEN}" if tells else found[0]


def in_text(text: str) -> str:
    """A text with the secrets hidden that it names, and those in URIs inside it."""

    def told(found: re.Match[str]) -> str:
        return found[1] + found[2] + (found[3] or "") + HIDDEN if _is_told(found) else found[0]

    return _TOLD.sub(told, _URI.sub(lambda found: in_uri(found[0]), text))


def _is_told(found: re.Match[str]) -> bool:
    return is_secret(found[1].strip("-").rpartition(".")[2])


def hidden(value: Any, *, names: bool = True) -> Any:
    """The same tree without its secrets.

    Args:
        value: a mapping, list or value as JSON has them.
        names: also hide what stands under a name that tells a secret, not only inside URIs.
    """
    if isinstance(value, dict):
        return {
            key: _blank(entry) if names and _tells(key, entry) else hidden(entry, names=names)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        before = ["", *value]
        return [
            HIDDEN if names and _asks(before[number]) else hidden(entry, names=names)
            for number, entry in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    return in_text(value) if names else in_uri(value) if "://" in value else value


def _blank(value: Any) -> Any:
    """A value or tree under a name that tells a secret."""
    if isinstance(value, dict):
        return {key: _blank(entry) for key, entry in value.items()}
    return value if value in (None, "") or isinstance(value, bool) else HIDDEN


def _asks(word: Any) -> bool:
    """Whether a word of a command line is an option whose value is a secret."""
    return isinstance(word, str) and word[:1] == "-" and "=" not in word and is_secret(word.strip("-"))


def placeholders(value: Any, key: str = "") -> list[str]:
    """Dotted keys of a tree whose secret was hidden when it was written."""
    if isinstance(value, dict):
        return [
            found
            for name, entry in value.items()
            for found in placeholders(entry, f"{key}.{name}" if key else name)
        ]
    if isinstance(value, list):
        return [
            found for number, entry in enumerate(value) for found in placeholders(entry, f"{key}.{number}")
        ]
    return [key] if isinstance(value, str) and (value == HIDDEN or f"://{HIDDEN}@" in value) else []


def in_line(text: str) -> str:
    """Words with the secrets hidden that stand in URIs among them."""
    return _URI.sub(lambda found: in_uri(found[0]), text)


def without(text: str, value: Any) -> str:
    """Words that may quote the secrets of a tree, such as another package's message, with them hidden."""
    for secret in sorted(_secrets(value), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return in_line(text)


def shown(value: Any, key: str) -> str:
    """A value as a message may quote it.

    Args:
        value: anything.
        key: dotted, or an option, that it was given for.
    """
    if key.partition(".")[0] == "watch":
        if key.count(".") < 2 and not isinstance(value, dict):
            return HIDDEN  # a key to an account where a tracker's options should stand
        name = key.rpartition(".")[2]
        return str(hidden({name: value})[name])
    if isinstance(value, dict | list | tuple):
        return str(hidden(value, names=isinstance(value, dict)))
    return in_text(str(value)) if key[:2] == "--" else str(value)


def _tells(name: Any, entry: Any) -> bool:
    return (
        isinstance(name, str) and is_secret(name) and entry not in (None, "") and not isinstance(entry, bool)
    )


def _secrets(value: Any, told: bool = False) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_secrets(entry, told or _tells(key, entry)) for key, entry in value.items()))
    if isinstance(value, list | tuple):
        before = ["", *value]
        return set().union(*(_secrets(entry, told or _asks(before[n])) for n, entry in enumerate(value)))
    if told:
        return {str(value)} if not isinstance(value, bool) and len(str(value)) > 2 else set()
    return {found[4] for found in _TOLD.finditer(str(value)) if _is_told(found) and len(found[4]) > 2}


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


def plain(value: Any) -> Any:
    """A value that JSON can hold: there are no infinite numbers in it."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
