"""Chat messages and tools out of a row, in the forms they are written in: the APIs', ShareGPT's, JSON in text.

messages(row["messages"], "chat.jsonl", "data.domains.chat.messages_column", "line 3")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.sources import readers

_ROLE, _CONTENT = ("role", "from", "speaker"), ("content", "value", "text")
REMEDY = 'write it as {"role": "user", "content": "..."}'


def messages(value: Any, file: str, key: str, place: str) -> list[dict[str, Any]] | None:
    """Chat messages, each with a role, a content that is text, and what else it has; what is null or empty is left out.

    Raises:
        UserError: the value holds something else, such as an image.
    """
    value = _parsed(value)
    if value is None:
        return None
    if not isinstance(value, list):
        raise readers.wrong_type(file, key, None, "lists of messages", f"{type(value).__name__} in {place}")
    return [_message(_parsed(message), file, key, place) for message in value]


def tools(value: Any) -> list[dict[str, Any]] | None:
    """Descriptions of tools; None where a column of that name holds something else, or nothing."""
    value = _parsed(value)
    found = [_parsed(tool) for tool in value] if isinstance(value, list) else []
    return found if found and all(isinstance(tool, dict) for tool in found) else None


def is_message(value: Any) -> bool:
    """Whether a value looks like a message."""
    value = _parsed(value)
    return (
        isinstance(value, Mapping)
        and isinstance(_first(value, _ROLE), str)
        and any(n in value for n in _CONTENT)
    )


def is_messages(value: Any) -> bool:
    """Whether a value looks like a conversation."""
    value = _parsed(value)
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def _parsed(value: Any) -> Any:
    """What a text says as JSON, where it is a list or an object; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _first(message: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _message(message: Any, file: str, key: str, place: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(role := _first(message, _ROLE), str):
        raise UserError(f"{place} has a message without a role", file=file, key=key, remedy=REMEDY)
    content = _first(message, _CONTENT)
    parts = content if isinstance(content, list) else [content]
    texts = [_text(part, file, key, place) for part in parts if part is not None]
    names = {*_ROLE, *_CONTENT}
    # files with one type for all rows write null, or an empty list, where a message has nothing of a kind
    others = {name: value for name, value in message.items() if value not in (None, []) and name not in names}
    return {"role": role, **others, "content": "".join(texts)}


def _text(part: Any, file: str, key: str, place: str) -> str:
    """The text of a content or of a part of it."""
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind not in (None, "text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            what = f"of type {kind}" if kind else f"with {', '.join(map(str, part))}"
            raise UserError(
                f"{place} has a content {what}, not text", file=file, key=key,
                remedy="leave such rows out: only text is trained on",
            )  # fmt: skip
        part = part["text"]
    return readers.text(part, file, key, place) or ""


_NAMES = {
    "user": "user human prompter customer",
    "assistant": "assistant gpt chatgpt bot chatbot model ai bing bard llm agent function_call",
    "tool": "tool observation function_response function_result tool_response tool_result",
    "system": "system",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}


def role_of(name: str) -> str:
    """The role that a name stands for; the name itself where it is nobody's."""
    return _ROLES.get(name.strip().lower(), name)


def name_in(template: str, name: str) -> str:
    """The name that a chat template has for a role: the one given where it speaks of that one alone."""
    role = role_of(name)
    spoken_of = {each for each in (role, name) if f"'{each}'" in template or f'"{each}"' in template}
    return name if spoken_of == {name} else role
