"""Chat messages into ids, and which of them the assistant said.

    ids, mask, size = encode_chat(encoder, messages)

The text is what the tokenizer's chat template renders; the loss counts on what it writes between the generation
prompt and the end of the assistant's turn: thoughts, words and tool calls, and the token that ends the turn.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from transformers.utils.chat_template_utils import _compile_jinja_template

from opmix_ray.data.tokenizer import Encoder
from opmix_ray.sources.messages import name_in, role_of

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
# The date of every template that prints one, so that the same file gives the same tokens on every day. It is the one
# that Llama 3's template falls back to.
DATE = datetime.datetime(2024, 7, 26)
_MARKS = ("Zq0xq", "7wW9v")  # texts that differ in their first and in their last character


class ChatError(ValueError):
    """Messages that the template does not take, or renders so that the answers cannot be told apart."""


def encode_chat(
    encoder: Encoder, messages: Messages, tools: Tools | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Render and tokenise one conversation.

    Args:
        encoder: its tokenizer has a chat template.
        messages: role and content each.
        tools: descriptions of the tools that may be called.

    Returns:
        ids, int64 of shape (n,), ending with end-of-text; which of them count, bool of shape (n,);
        bytes of text that the counted ones stand for.

    Raises:
        ChatError: see the class.
    """
    said = _assistants(messages)
    messages = _named(encoder, messages)
    eos = str(encoder.tokenizer.eos_token)
    text = _render(encoder, messages, tools)
    if text.rstrip().endswith(eos):
        text = text.rstrip()
    spans = _answers(_Rendering(encoder, messages, tools, text), said)
    ids, offsets = encoder.rendered(text)
    mask = np.zeros(len(ids), dtype=np.bool_)
    for start, end in spans:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    if len(ids) == 0 or ids[-1] != encoder.eos:
        ids = np.append(ids, encoder.eos)
        mask = np.append(mask, said[-1])
    return ids, mask, sum(len(text[start:end].encode()) for start, end in spans)


def render(encoder: Encoder, messages: Messages, prompt: bool = False) -> str:
    """The text of messages; with `prompt`, up to where the assistant is to speak.

    Raises:
        ChatError: the template does not take them.
    """
    return _render(encoder, _named(encoder, messages), None, prompt)


def _named(encoder: Encoder, messages: Messages) -> Messages:
    """Messages whose roles have the names that the template knows."""
    template = str(encoder.tokenizer.chat_template)
    return [{**message, "role": name_in(template, message["role"])} for message in messages]


def _assistants(messages: Messages) -> list[bool]:
    """Which messages are the assistant's.

    Raises:
        ChatError: none, though somebody speaks whose role is not known.
    """
    roles = [role_of(message["role"]) for message in messages]
    if "assistant" not in roles and set(roles) - {
        "system",
        "developer",
        "user",
        "tool",
        "function",
        "ipython",
    }:
        raise ChatError(f"none of the roles {', '.join(dict.fromkeys(roles))} is known as the assistant's")
    return [role == "assistant" for role in roles]


def _render(encoder: Encoder, messages: Messages, tools: Tools | None, prompt: bool = False) -> str:
    tokenizer = encoder.tokenizer
    try:
        if "strftime_now" in str(tokenizer.chat_template):
            # transformers keeps compiled templates, and gives them a clock that nothing else replaces
            compiled = _compile_jinja_template(tokenizer.get_chat_template(tools=tools))
            compiled.globals["strftime_now"] = DATE.strftime
        return str(
            tokenizer.apply_chat_template(
                messages, tools=cast(Any, tools), tokenize=False, add_generation_prompt=prompt
            )
        )
    except Exception as error:  # a template is a program of its own
        raise ChatError(f"the chat template does not take these messages: {error}") from None


@dataclass
class _Rendering:
    """One conversation, its whole text, and renderings of its parts."""

    encoder: Encoder
    messages: Messages
    tools: Tools | None
    text: str

    def part(self, messages: Messages, prompt: bool = False) -> str | None:
        """The text of other messages; None where the template does not take them."""
        try:
            return _render(self.encoder, messages, self.tools, prompt)
        except ChatError:
            return None

    def ends_in(self, text: str) -> str | None:
        """The special token at the end of a text, over blank space."""
        text = text.rstrip()
        return max((t for t in self.encoder.special_tokens if t and text.endswith(t)), key=len, default=None)


def _answers(of: _Rendering, said: list[bool]) -> list[tuple[int, int]]:
    """Start and end in the text of everything that the assistant says, with the tokens that end its turns."""
    spans: list[tuple[int, int]] = []
    for index, own in enumerate(said):
        if own:
            start, end = _answer(of, index, spans[-1][1] if spans else 0)
            if end > start:
                spans.append((start, end))
    return spans


def _answer(of: _Rendering, index: int, floor: int) -> tuple[int, int]:
    """Where the answer that is message `index` lies; it begins at `floor` or later.

    Most templates write a conversation's beginning as they write it whole, so the answer lies between two of those.
    Where they do not (thoughts of earlier turns that are dropped), the message's place is found by two renderings in
    which only its content differs.
    """
    text, before = of.text, of.messages[:index]
    closed, opened = of.part(before), of.part(before, prompt=True)
    prompt = (
        opened[len(closed) :]
        if opened is not None and closed is not None and opened.startswith(closed)
        else ""
    )
    openings = [opened, opened.rpartition("<think")[0] if "<think" in prompt else None] if opened else []
    exact = next((len(opening) for opening in openings if opening and text.startswith(opening)), None)
    after = text if index == len(of.messages) - 1 else of.part(of.messages[: index + 1])
    ends = len(after) if after is not None and text.startswith(after) else None
    if exact is None or not prompt or ends is None:
        place = _place(of, index, after)
        if place is None and (exact is None or ends is None):
            raise ChatError("the chat template renders a conversation and its beginning differently")
        if place is not None:
            ends = place[1] if ends is None else ends
            exact = _begin(text, place[0], prompt, exact, floor)
    assert exact is not None
    assert ends is not None
    start = max(exact, floor)
    return start, _end(of, start, max(ends, start))


def _begin(text: str, content: int, prompt: str, exact: int | None, floor: int) -> int:
    """Where an answer begins whose content is at `content`: after the generation prompt, if there is one."""
    if exact is not None:  # a template may write who speaks without being asked for a generation prompt
        return content if not prompt and text[exact:content].strip() else exact
    for head in (prompt, prompt.partition("<think")[0]):
        if head and (at := text.rfind(head, floor, content)) >= 0:
            return at + len(head)
    return content


def _place(of: _Rendering, index: int, after: str | None) -> tuple[int, int] | None:
    """Start and end of a message's content, by renderings with other contents in its place."""
    message, text = of.messages[index], of.text
    plain = {"role": message["role"]}
    for others in (plain, message):
        rows = [
            [*of.messages[:index], {**others, "content": mark}, *of.messages[index + 1 :]] for mark in _MARKS
        ]
        one, other = (of.part(row) for row in rows)
        if one is None or other is None or one == other:
            continue
        start, tail = _same_start(one, other), _same_start(one[::-1], other[::-1])
        start = min(start, _same_start(one, text))
        if others is plain:
            tail = min(tail, _same_start(one[::-1], text[::-1]))
            return start, max(start, len(text) - tail)
        turn = of.ends_in(after or "")  # the calls stay in both: what ends the turn says where it ends
        found = text.find(turn, start) if turn else -1
        return (start, found + len(turn)) if turn and found >= 0 else None
    return None


def _same_start(one: str, other: str) -> int:
    """How many characters two texts begin with together."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _end(of: _Rendering, start: int, end: int) -> int:
    """The end of a turn: without blank space, and with the special token that follows."""
    said = of.text[start:end].rstrip()
    if of.ends_in(said):
        return start + len(said)
    end = start + len(said)
    rest = of.text[end : end + 200]
    token = _leading(of.encoder.special_tokens, rest.lstrip())
    return end + len(rest) - len(rest.lstrip()) + len(token) if token else end


def _leading(tokens: Sequence[str] | set[str], text: str) -> str:
    return max((token for token in tokens if token and text.startswith(token)), key=len, default="")
