"""Chat messages and tools out of a row, in the forms they are written in: the APIs', ShareGPT's, JSON in text.

messages(row["messages"], "chat.jsonl", "data.domains.chat.messages_column", "line 3")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.sources import readers

_ROLE, _CONTENT = ("role", "from", "speaker"), ("content", "value", "text")
SAID = "said"  # key of a message that was nothing but tool calls, as LLaMA-Factory writes them: its content
REMEDY = 'write it as {"role": "user", "content": "..."}'


def messages(value: Any, file: str, key: str, place: str) -> list[dict[str, Any]] | None:
    """Chat messages, each with a role, a content that is text, and what else it has; what is null or empty is left out.

    Raises:
        UserError: the value holds something else, such as an image.
    """
    value = _rows(_parsed(value))
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
    value = _rows(_parsed(value))
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_answered(value: Any, *, alone: bool = False) -> bool:
    """Whether an assistant answers somebody in a conversation, or says something, `alone`."""
    found = [_parsed(each) for each in _rows(_parsed(value)) or []]
    roles = {role_of(str(_first(each, _ROLE))) for each in found if isinstance(each, Mapping)}
    return "assistant" in roles and (alone or len(roles) > 1)


def _parsed(value: Any) -> Any:
    """What a text says as JSON, where it is a list or an object; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _rows(value: Any) -> Any:
    """Messages out of an object with a list for each of their keys, as `datasets` wrote them before its version 4."""
    if not isinstance(value, Mapping) or not all(isinstance(each, list) for each in value.values()):
        return value
    names, lengths = set(value), {len(each) for each in value.values()}
    if len(lengths) != 1 or not names & set(_ROLE) or not names & set(_CONTENT):
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


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
    said = "".join(texts)
    if called := _calls(others, file, key, place):
        others["tool_calls"] = called
    elif role.strip().lower() == "function_call" and (called := _called(said)):
        others |= {"tool_calls": called, SAID: said}
        said = ""
    return {"role": role, **others, "content": said}


def _calls(others: dict[str, Any], file: str, key: str, place: str) -> list[Any]:
    """A message's tool calls in one form: JSON in text is parsed, a name and arguments by themselves are a function.

    What the API of OpenAI called `function_call` before it had tools is taken out of `others`.
    """
    legacy = _parsed(others.get("function_call"))
    if isinstance(legacy, Mapping) and "tool_calls" not in others:
        del others["function_call"]
        calls: Any = [legacy]
    else:
        calls = _parsed(others.get("tool_calls", []))
        calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise UserError(
            f"{place} has tool calls that are no list of objects", file=file, key=key,
            remedy='write them as [{"type": "function", "function": {"name": "...", "arguments": {...}}}]',
        )  # fmt: skip
    return [_call(_parsed(call)) for call in calls]


def _called(said: str) -> list[Any]:
    """The calls that a text consists of, as JSON; none where it says anything else."""
    found = _parsed(said)
    calls = [_call(_parsed(call)) for call in (found if isinstance(found, list) else [found])]
    return calls if all(isinstance(call, Mapping) and "function" in call for call in calls) else []


def _call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = _parsed(call.get("function"))
    if isinstance(inner, Mapping):
        kind = {} if "type" in call else {"type": "function"}
        return {**kind, **call, "function": _function(inner)}
    flat = isinstance(call.get("name"), str) and inner is None
    return {"type": "function", "function": _function(call)} if flat else dict(call)


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function that is called; that it gets nothing may have been written as an empty text."""
    return {**function, "arguments": {}} if function.get("arguments") == "" else dict(function)


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
    "tool": "tool ipython observation function function_response function_result tool_response tool_result",
    "system": "system",
    "developer": "developer",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
# What else a template may call a role: `function` may only be a key of a call there.
_ELSE = {"tool": ("ipython", "observation", "tool_response"), "developer": ("system",)}


def role_of(name: str) -> str:
    """The role that a name stands for; the name itself where it is nobody's."""
    return _ROLES.get(name.strip().lower(), name)


def name_in(template: str, name: str) -> str:
    """The name that a chat template has for a role: the usual one, the given one or another, as it speaks of them."""
    role = role_of(name)
    names = (role, name, *_ELSE.get(role, ()))
    return next((each for each in names if f"'{each}'" in template or f'"{each}"' in template), role)


def in_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have objects as arguments."""

    def parsed(given: Any) -> Any:
        if isinstance(given, str) and given.lstrip().startswith("{"):
            with suppress(ValueError, RecursionError):
                return json.loads(given)
        return given

    return _with_arguments(message, parsed)


def in_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have JSON in a text as arguments."""
    return _with_arguments(
        message, lambda given: json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given
    )


def in_words(message: dict[str, Any]) -> dict[str, Any]:
    """A message that was nothing but calls as it was written, and any other as `in_objects` gives it."""
    if SAID not in message:
        return in_objects(message)
    return {"role": message["role"], "content": message[SAID]}


def _with_arguments(message: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": change(call["function"]["arguments"])}}
        if is_function(call) and "arguments" in call["function"]
        else call
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def is_function(call: Any) -> bool:
    """Whether a call is of a function."""
    return isinstance(call, dict) and isinstance(call.get("function"), dict)


def objects_in(talk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of all calls that are objects with something in them."""
    calls = [call for message in talk for call in message.get("tool_calls", []) if is_function(call)]
    given = [call["function"].get("arguments") for call in calls]
    return [each for each in given if isinstance(each, dict) and each]
