"""Chat messages into ids, and which of them the assistant said.

    ids, mask, size = encode_chat(encoder, messages)

The text is what the tokenizer's chat template renders; the loss counts on what the assistant says, and on the
end-of-turn token after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix_ray.data.tokenizer import Encoder

Messages = list[dict[str, Any]]


class ChatError(ValueError):
    """Messages that the template does not take, or renders so that the answers cannot be told apart."""


def encode_chat(encoder: Encoder, messages: Messages) -> tuple[np.ndarray, np.ndarray, int]:
    """Render and tokenise one conversation.

    Args:
        encoder: its tokenizer has a chat template.
        messages: role and content each.

    Returns:
        ids, int64 of shape (n,), ending with end-of-text; which of them count, bool of shape (n,);
        bytes of text that the counted ones stand for.

    Raises:
        ChatError: see the class.
    """
    eos = str(encoder.tokenizer.eos_token)
    text = render(encoder, messages)
    if text.rstrip().endswith(eos):
        text = text.rstrip()
    spans = _answers(encoder, messages, text)
    ids, offsets = encoder.rendered(text)
    mask = np.zeros(len(ids), dtype=np.bool_)
    for start, end in spans:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    if len(ids) == 0 or ids[-1] != encoder.eos:
        ids = np.append(ids, encoder.eos)
        mask = np.append(mask, messages[-1]["role"] == "assistant")
    return ids, mask, sum(len(text[start:end].encode()) for start, end in spans)


def render(encoder: Encoder, messages: Messages, prompt: bool = False) -> str:
    """The text of messages; with `prompt`, up to where the assistant is to speak.

    Raises:
        ChatError: the template does not take them.
    """
    try:
        return str(
            encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        )
    except Exception as error:  # a template is a program of its own
        raise ChatError(f"the chat template does not take these messages: {error}") from None


def _answers(encoder: Encoder, messages: Messages, text: str) -> list[tuple[int, int]]:
    """Start and end in `text` of each thing the assistant says, with the end-of-turn token."""
    spans = []
    position = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = position
        if index:
            prompt = render(encoder, messages[:index], prompt=True)
            if not text.startswith(prompt):
                prompt = render(encoder, messages[:index])
            if not text.startswith(prompt):
                raise ChatError("the chat template renders a conversation and its beginning differently")
            start = len(prompt)
        content = str(message["content"]).strip()
        found = text.find(content, start)
        if found < 0:
            raise ChatError("the chat template changes what the assistant says")
        if not index:
            start = found
        end = found + len(content)
        end = _after_end_of_turn(encoder, text, end)
        spans.append((start, end))
        position = end
    return spans


def _after_end_of_turn(encoder: Encoder, text: str, end: int) -> int:
    """The end of a special token that follows, over blank space; `end` where none does."""
    rest = text[end : end + 200].lstrip()
    start = end + len(text[end : end + 200]) - len(rest)
    lengths = [len(token) for token in encoder.special_tokens if token and rest.startswith(token)]
    return start + max(lengths) if lengths else end
