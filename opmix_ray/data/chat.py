"""Chat messages into ids, and which of them the assistant said.

    ids, mask, size = encode_chat(encoder, messages)

The text is what the tokenizer's chat template renders; the loss counts on what it writes between the generation
prompt and the end of the assistant's turn: thoughts, words and tool calls, and the token that ends the turn.
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from transformers.utils.chat_template_utils import _compile_jinja_template

from opmix_ray.data.tokenizer import Encoder
from opmix_ray.sources.messages import (
    in_objects,
    in_text,
    in_words,
    is_function,
    name_in,
    objects_in,
    role_of,
)
from opmix_ray.sources.source import THOUGHTS

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
# The date of every template that prints one, so that the same file gives the same tokens on every day. It is the one
# that Llama 3's template falls back to.
DATE = datetime.datetime(2024, 7, 26)
_ANYTHING: Messages = [{"role": "user", "content": "a"}]
_told: set[str] = set()
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
    counts = [own and _is_trained(message) for own, message in zip(said, messages, strict=True)]
    eos = str(encoder.tokenizer.eos_token)
    rendering = _written(encoder, _named(encoder, messages, tools), tools)
    text = rendering.text
    _refuse_silence(rendering, said)
    _tell_what_is_left_out(rendering, said)
    answers = _answers(rendering, said)
    _refuse_others(rendering, said, answers)
    spans = [span for span, counted in zip(answers, counts, strict=True) if counted and span[1] > span[0]]
    if text.rstrip().endswith(eos):
        text = text.rstrip()
    ids, offsets = encoder.rendered(text)
    mask = np.zeros(len(ids), dtype=np.bool_)
    for start, end in spans:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    if len(ids) == 0 or ids[-1] != encoder.eos:
        ids = np.append(ids, encoder.eos)
        mask = np.append(mask, counts[-1])
    return ids, mask, sum(len(text[start:end].encode()) for start, end in spans)


def render(encoder: Encoder, messages: Messages, prompt: bool = False, tools: Tools | None = None) -> str:
    """The text of messages; with `prompt`, up to where the assistant is to speak.

    Raises:
        ChatError: the template does not take them.
    """
    said = _assistants(messages)
    rendering = _written(encoder, _named(encoder, messages, tools), tools)
    _refuse_silence(rendering, said)
    return _render(encoder, rendering.messages, tools, prompt)


def _named(encoder: Encoder, messages: Messages, tools: Tools | None) -> Messages:
    """Messages whose roles have the names that the template knows."""
    template = _template(encoder, tools)
    return [{**message, "role": name_in(template, message["role"])} for message in messages]


def _template(encoder: Encoder, tools: Tools | None) -> str:
    """The tokenizer's template; of several the one that is taken where there are tools, or none."""
    try:
        return str(encoder.tokenizer.get_chat_template(tools=cast(Any, tools)))
    except ValueError as error:
        raise ChatError(f"the tokenizer has no chat template that is taken here: {error}") from None


def _is_trained(message: dict[str, Any]) -> bool:
    """Whether an answer counts: some data sets say so themselves, by `weight` (OpenAI) or `train` (Axolotl).

    Raises:
        ChatError: it counts in part.
    """
    said = [message[name] for name in ("weight", "train", "training") if message.get(name) is not None]
    if wrong := [value for value in said if value not in (0, 1)]:
        raise ChatError(f"the weight of an answer is 0 or 1, not {wrong[0]!r}")
    return all(said)


def _assistants(messages: Messages) -> list[bool]:
    """Which messages are the assistant's.

    Raises:
        ChatError: none, though somebody speaks whose role is not known.
    """
    roles = [role_of(message["role"]) for message in messages]
    if "assistant" not in roles and set(roles) - {"system", "developer", "user", "tool"}:
        raise ChatError(f"none of the roles {', '.join(dict.fromkeys(roles))} is known as the assistant's")
    return [role == "assistant" for role in roles]


def _render(encoder: Encoder, messages: Messages, tools: Tools | None, prompt: bool = False) -> str:
    tokenizer = encoder.tokenizer
    try:
        if "strftime_now" in (template := _template(encoder, tools)):
            # transformers keeps compiled templates, and gives them a clock that nothing else replaces
            compiled = _compile_jinja_template(template)
            compiled.globals["strftime_now"] = DATE.strftime
        return str(
            tokenizer.apply_chat_template(
                messages, tools=cast(Any, tools), tokenize=False, add_generation_prompt=prompt
            )
        )
    except ChatError:
        raise
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

    def opening(self, index: int) -> tuple[str | None, str]:
        """The text before message `index` with the generation prompt at its end, and that prompt alone.

        Where the template does not take what comes before, the prompt is the one that other messages are followed by.
        """
        before = self.messages[:index]
        opened = found = self.part(before, prompt=True)
        for others in (before, before[:-1], _ANYTHING):
            closed, found = self.part(others), found if others is before else self.part(others, prompt=True)
            if closed is not None and found is not None:
                return opened, found[self.token_at(found, _same_start(closed, found)) :]
        return opened, ""

    def token_at(self, text: str, place: int) -> int:
        """Where the special token begins that a place in a text lies inside of; the place where it does in none."""
        for token in self.encoder.special_tokens:
            start = text.rfind(token, 0, place + len(token) - 1)
            if 0 <= start < place < start + len(token):
                return start
        return place

    def closing(self, text: str) -> str:
        """The special token at the end of a text, over blank space."""
        return max(
            (t for t in self.encoder.special_tokens if t and text.rstrip().endswith(t)), key=len, default=""
        )

    @cached_property
    def openers(self) -> set[str]:
        """Special tokens that stand before all that is said."""
        first = _with_mark(self.messages, 0, self.messages[0], _MARKS[0])
        found, rest = set(), self.part(first) or ""
        while token := self.leading(rest):
            found.add(token.strip())
            rest = rest[len(token) :]
        return found - {str(self.encoder.tokenizer.eos_token)}

    def shut(self, start: int, end: int) -> int:
        """The end of a turn without the beginning of another, which some templates write behind every one."""
        place, last = end, ""
        while token := self.closing(self.text[start:place]):
            if last and last in self.openers:
                end = place
            last, place = token, start + len(self.text[start:place].rstrip()) - len(token)
        return end

    def leading(self, text: str) -> str:
        """The special token at the beginning of a text, with blank space before it."""
        bare = text.lstrip()
        token = max((t for t in self.encoder.special_tokens if t and bare.startswith(t)), key=len, default="")
        return text[: len(text) - len(bare)] + token if token else ""


def _written(encoder: Encoder, messages: Messages, tools: Tools | None) -> _Rendering:
    """Messages as the template takes them, and their text.

    Most templates take the arguments of a call as an object, which they write as JSON; some as JSON in a text. A call
    that was the content of a message of its own is that again where the template knows no calls.

    Raises:
        ChatError: the template does not take them, or leaves a call out.
    """
    called = [index for index, message in enumerate(messages) if message.get("tool_calls")]
    first: ChatError | None = None
    for form in (in_objects, in_text, in_words) if called else (in_objects,):
        form_of = [form(message) for message in messages]
        try:
            of = _Rendering(encoder, form_of, tools, _render(encoder, form_of, tools))
            if not all(_writes_calls(of, index) for index in called):
                raise ChatError("the chat template leaves out the tool calls")
            if any(str(each) in of.text for each in objects_in(form_of)):
                raise ChatError("the chat template writes the arguments of tool calls as Python does")
            return of
        except ChatError as error:
            first = first or error
    assert first is not None
    raise first


def _refuse_silence(of: _Rendering, said: list[bool]) -> None:
    """Raise a `ChatError` where the text does not depend on what a user or a tool says.

    What a system says may be left out: some templates write it only before the last question.
    """
    for index, (message, own) in enumerate(zip(of.messages, said, strict=True)):
        if own or role_of(message["role"]) == "system" or message["content"].strip() in of.text:
            continue
        marked = _with_mark(of.messages, index, message, _MARKS[0])
        if of.part(marked) == of.text:
            raise ChatError(f"the chat template leaves out what the {message['role']} says")


def _refuse_others(of: _Rendering, said: list[bool], answers: list[tuple[int, int]]) -> None:
    """Raise a `ChatError` where an answer holds what somebody else says, as where words follow a tool's."""
    for index, (message, own) in enumerate(zip(of.messages, said, strict=True)):
        words = message["content"].strip()
        near = [span for span in answers if words and not own and words in of.text[slice(*span)]]
        one, two = (of.part(_with_mark(of.messages, index, message, mark)) if near else "" for mark in _MARKS)
        if one and two and one != two:
            place = min(_same_start(one, two), _same_start(one, of.text))
            if any(start < place < end for start, end in near):
                raise ChatError(f"the chat template writes what the {message['role']} says inside an answer")


def _tell_what_is_left_out(of: _Rendering, said: list[bool]) -> None:
    """Say once in a process what the text does not depend on: words of a system, and the last answer's thoughts in a
    field of their own (most templates leave out those of earlier answers)."""
    last = max((index for index, own in enumerate(said) if own), default=-1)
    for index, message in enumerate(of.messages):
        names = ["content"] if role_of(message["role"]) == "system" else THOUGHTS if index == last else []
        for name in names:
            what = f"`{name}` of an answer" if index == last else "what the system says"
            words = message.get(name)
            if what in _told or not isinstance(words, str) or not words.strip() or words.strip() in of.text:
                continue
            other = [*of.messages[:index], {**message, name: _MARKS[0]}, *of.messages[index + 1 :]]
            if of.part(other) == of.text:
                _told.add(what)
                logging.getLogger(__name__).warning(
                    "the chat template leaves out %s, in one conversation or more: they are trained on without it",
                    what,
                )


def _answers(of: _Rendering, said: list[bool]) -> list[tuple[int, int]]:
    """Start and end in the text of each message that is the assistant's, with the token that ends its turn; the same
    place twice for any other message, and where nothing is written."""
    spans: list[tuple[int, int]] = []
    floor = 0
    for index, own in enumerate(said):
        start, end = _answer(of, index, floor) if own else (floor, floor)
        end = of.shut(start, end)
        floor = max(floor, end)
        spans.append((start, max(start, end)))
    return spans


def _answer(of: _Rendering, index: int, floor: int) -> tuple[int, int]:
    """Where the answer that is message `index` lies; it begins at `floor` or later.

    Most templates write a conversation's beginning as they write it whole, so the answer lies between two of those.
    Where they do not (thoughts of earlier turns that are dropped, tools that stand before the last question), the
    message's place is found by renderings in which only that message differs.
    """
    before, (text, message) = of.messages[:index], (of.text, of.messages[index])
    if not message["content"] and of.part([*before, *of.messages[index + 1 :]]) == text:
        return floor, floor  # nothing was said, and nothing is written
    opened, prompt = of.opening(index)
    heads = [prompt, prompt.partition("<think")[0]]
    openings = (
        [opened, opened[: len(opened) - len(prompt)] + heads[1] if heads[1] else None] if opened else []
    )
    start = next((len(each) for each in openings if each and text.startswith(each)), None)
    after = text if index == len(of.messages) - 1 else of.part(of.messages[: index + 1])
    if start is not None and prompt and after is not None and text.startswith(after):
        return max(start, floor), _end(of, max(start, floor), len(after))
    place = _place(of, index, after, bool(prompt))
    if place is None:
        raise ChatError("the chat template renders a conversation and its beginning differently")
    content, end = place
    if start is None:
        at = next(
            (at + len(head) for head in heads if head and (at := text.rfind(head, floor, content)) >= 0), None
        )
        start = (
            len(text[:content].rstrip(" ")) if at is None and not prompt else content if at is None else at
        )
    elif not prompt and text[start:content].strip() and not message.get("tool_calls"):
        start = content  # a template may write who speaks without being asked for a generation prompt
    start = max(start, floor)
    if after is not None and text.startswith(after):
        return start, _end(of, start, max(start, len(after)))
    parted = of.token_at(text, _same_start(after or "", text))  # from where it is certainly not this turn's
    if content < parted < end and of.closing(text[start:parted]):
        end = parted
    return start, max(start, end)


def _end(of: _Rendering, start: int, end: int) -> int:
    """The end of a turn: without blank space, and with the special token that follows."""
    end = start + len(of.text[start:end].rstrip())
    return end if of.closing(of.text[start:end]) else end + len(of.leading(of.text[end:]))


def _place(of: _Rendering, index: int, after: str | None, prompted: bool) -> tuple[int, int] | None:
    """Start of a message's content and end of its turn, by renderings with other contents in its place.

    Where nothing is written before an answer, its beginning cannot be looked for: then what follows it goes before its
    calls stay as they are.
    """
    text, message = of.text, of.messages[index]
    until = next(
        (n for n in range(index + 1, len(of.messages)) if of.messages[n]["role"] == "user"), len(of.messages)
    )
    plain, rest = {"role": message["role"]}, of.messages[index + 1 :]
    kept, gone = (message, rest), (plain, of.messages[until:])
    for other, following in ((plain, rest), *((kept, gone) if prompted else (gone, kept))):
        marked = [_with_mark(of.messages, index, other, mark) for mark in _MARKS]
        one, two = (of.part([*rows[: index + 1], *following]) for rows in marked)
        if one is None or two is None or one == two:
            continue
        start = of.token_at(text, min(_same_start(one, two), _same_start(one, text)))
        tail = _same_start(one[::-1], two[::-1])
        if following is not rest:  # what followed is gone: the turn ends where it is first closed
            found = text.find(turn, start) if (turn := of.closing(after or "")) else -1
            return (start, found + len(turn)) if found >= 0 else None
        tail = min(tail, _same_start(one[::-1], text[::-1])) if other is plain else tail
        end = len(text) - tail
        return min(start, end), _closed(of, end, [rows[: index + 1] for rows in marked])
    return None


def _closed(of: _Rendering, end: int, rows: list[Messages]) -> int:
    """The end of a turn whose content ends at `end`: what follows it here as well as where nothing comes after it."""
    text, (one, two) = of.text, (of.part(each) for each in rows)
    if (
        within := of.token_at(text, end)
    ) < end:  # another kind of turn ends in a token that is like this one's
        return within + len(of.leading(text[within:]))
    same = 0
    if one is not None and two is not None and one != two:
        last = one[len(one) - _same_start(one[::-1], two[::-1]) :]
        same = of.token_at(text, end + _same_start(text[end:], last)) - end
    written = text[end : end + max(0, same)]
    ends = [written.rfind(t) + len(t) for t in of.encoder.special_tokens if t and t in written]
    if ends:
        return end + max(ends)
    end += len(written.rstrip())
    return end + len(of.leading(text[end:]))


def _with_mark(messages: Messages, index: int, other: dict[str, Any], mark: str) -> Messages:
    """Messages with another one at `index`, whose content and calls are a mark."""
    row = {**other, "content": mark}
    if other.get("tool_calls"):
        row["tool_calls"] = [_call_with(mark, call) for call in other["tool_calls"]]
    return [*messages[:index], row, *messages[index + 1 :]]


def _call_with(mark: str, call: Any) -> Any:
    """A tool call with a mark among its arguments, or as its name where it has none."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call_with(mark, call["function"])}
    given = call.get("arguments")
    if isinstance(given, dict):
        return {**call, "arguments": {**given, "q": mark}}
    return {**call, **({"arguments": mark} if isinstance(given, str) else {"name": mark})}


def _writes_calls(of: _Rendering, index: int) -> bool:
    """Whether the text depends on each of a message's calls, or its content names what is called."""
    message = of.messages[index]
    for place, call in enumerate(message.get("tool_calls", [])):
        inner = (call.get("function") or call) if isinstance(call, dict) else {}
        other = _call_with(_MARKS[0], {**inner, "name": _MARKS[0]})
        calls = [*message["tool_calls"][:place], {**call, "function": other} if is_function(call) else other]
        row = {**message, "tool_calls": calls + message["tool_calls"][place + 1 :]}
        written = of.part([*of.messages[:index], row, *of.messages[index + 1 :]]) != of.text
        if not written and str(inner.get("name")) not in message["content"]:
            return False
    return True


def _same_start(one: str, other: str) -> int:
    """How many characters two texts begin with together."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
