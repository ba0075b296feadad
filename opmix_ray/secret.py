"""Passwords and keys inside configurations and URIs, which are used but never written down or shown.

hidden({"wandb": {"api_key": "abc"}})              # {'wandb': {'api_key': '***'}}
hidden("mysql+pymysql://me:pw@host/db")            # 'mysql+pymysql://***@host/db'
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_NAME = re.compile(
    r"secret|passw(or)?d|passphrase|(^|_)pwd$|token|credential|signature|(^|_)sig$|(^|_)sas(_|$)|(^|_)auth(_|$)"
    r"|authorization|bearer|cookie|(^|_)key(_?id)?$|(api|access|account|private)_?key",
    re.IGNORECASE,
)
# Names that hold such a word and are no secret: files that hold one, numbers of tokens, keys of a table.
_HARMLESS = re.compile(r"_(file|path|dir|name|column|url|uri|type)$|tokeniz|(^|_)tokens(_|$)", re.IGNORECASE)
# What may stand before a host: `name:password@`, also with an encoded colon; a password may hold slashes.
_PAIR = re.compile(r"^([A-Za-z][\w+.-]*://)[^/@:?#]*(?::(?!\d+(?:/|$))|%3[Aa])[^@]*@")
# Over HTTP a name alone is a token; in other URIs it is a bucket or a container.
_ALONE = re.compile(r"^((?:https?|git\+https?)://)[^/@?#]+@", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether something of this name, as it stands in a URI or a configuration, is a secret."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unquote(name).strip().replace("-", "_"))  # secretKey
    return bool(_NAME.search(plain)) and not _HARMLESS.search(plain)


def in_uri(uri: str) -> str:
    """The URI with `***` in the place of a name and password, and of every secret in its query or fragment."""
    head, mark, rest = re.match(r"^([^?#]*)([?#]?)(.*)$", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    head = _PAIR.sub(rf"\1{HIDDEN}@", head)
    head = _ALONE.sub(rf"\1{HIDDEN}@", head)
    return head + mark + re.sub(r"([^&;=#?]+)=([^&;#]+)", _parameter, rest)


def _parameter(found: re.Match[str]) -> str:
    return f"{found[1]}={HIDDEN}" if is_secret(found[1]) else found[0]


def hidden(value: Any, *, names: bool = True) -> Any:
    """The same tree without its secrets.

    Args:
        value: a mapping, list or value as JSON has them.
        names: also hide what stands under a name that tells a secret, not only inside URIs.
    """
    if isinstance(value, dict):
        return {
            key: HIDDEN if names and _tells(key, entry) else hidden(entry, names=names)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [hidden(entry, names=names) for entry in value]
    return in_uri(value) if isinstance(value, str) and "://" in value else value


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


def without(text: str, value: Any) -> str:
    """Words that may quote the secrets of a tree, such as another package's message, with them hidden."""
    for secret in sorted(_secrets(value), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>)\]]+", lambda found: in_uri(found[0]), text)


def _tells(name: Any, entry: Any) -> bool:
    return (
        isinstance(name, str)
        and is_secret(name)
        and entry not in (None, "")
        and not isinstance(entry, bool | dict)
    )


def _secrets(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {str(entry) for key, entry in value.items() if _tells(key, entry) and len(str(entry)) > 2}
        return found.union(*(_secrets(entry) for entry in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(_secrets(entry) for entry in value))
    return set()
