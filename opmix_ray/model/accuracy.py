"""Questions answered by a model: the likeliest choice, or a greedy continuation; right or wrong, one by one.

A rate of wrong answers is a `SetLoss` like any other: `nats` holds 1 where the answer is wrong and 0 where it is
right, `tokens` counts the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from opmix_ray.data.questions import ChoiceSet, ExactSet
from opmix_ray.data.tokenizer import load_saved_tokenizer

Score = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Generate = Callable[..., torch.Tensor]


@torch.no_grad()
def wrong_choices(score: Score, asked: ChoiceSet, batch_size: int, device: torch.device) -> np.ndarray:
    """Which questions get a wrong answer: float64 of shape (n,), 1 where another choice is likelier.

    Each choice is scored by the log-likelihood of its tokens after the prompt, as in Brown et al. 2020 (GPT-3),
    section 2.4. Sequences of about the same length go together, filled up at the end, where causal attention does
    not look.

    Args:
        score: ids int64 (b, L) and mask bool (b, L) -> summed nats of the masked targets, (b,), and their number.
        asked: n questions.
        batch_size: sequences in one pass.
        device: to compute on.
    """
    flat = [
        (ids, start)
        for question in asked.questions
        for ids, start in zip(question.ids, question.starts, strict=True)
    ]
    nats = np.zeros(len(flat))
    order = sorted(range(len(flat)), key=lambda place: len(flat[place][0]))
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        length = max(len(flat[place][0]) for place in places)
        ids = torch.zeros((len(places), length), dtype=torch.int64)
        mask = torch.zeros((len(places), length), dtype=torch.bool)
        for row, place in enumerate(places):
            sequence, start = flat[place]
            ids[row, : len(sequence)] = torch.from_numpy(sequence)
            mask[row, start : len(sequence)] = True
        found, _ = score(ids.to(device), mask.to(device))
        nats[places] = found.double().cpu().numpy()
    wrong, position = [], 0
    for question in asked.questions:
        own = nats[position : position + len(question.ids)]
        position += len(question.ids)
        if asked.length_normalised:
            own = own / np.maximum(1, question.sizes)
        wrong.append(float(np.argmin(own) != question.answer))
    return np.array(wrong, dtype=np.float64)


def wrong_continuations(
    generate: Generate, asked: ExactSet, batch_size: int, device: torch.device
) -> np.ndarray:
    """Which questions get a wrong answer: float64 of shape (n,), 1 where the greedy continuation is another text.

    Args:
        generate: `plain_generate` of a model.
        asked: n questions.
        batch_size: prompts in one `generate`.
        device: the model's.
    """
    tokenizer = _tokenizer(asked.tokenizer)
    order = sorted(range(len(asked)), key=lambda place: len(asked.prompts[place]))
    wrong = np.ones(len(asked), dtype=np.float64)
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        prompts = [asked.prompts[place] for place in places]
        for place, ids in zip(
            places, continuations(generate, prompts, asked.max_new_tokens, asked.stops, device), strict=True
        ):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            wrong[place] = float(text.strip() != asked.answers[place].strip())
    return wrong


@torch.no_grad()
def continuations(
    generate: Generate,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    stops: Sequence[int],
    device: torch.device,
) -> list[np.ndarray]:
    """Greedy continuations of several prompts at once, each up to its first stop, which is left out.

    Prompts are filled up at the left, so that every continuation begins right after its prompt; the filling is
    hidden from attention, and positions are counted from each prompt's own first token.

    Args:
        generate: `plain_generate` of a model.
        prompts: int64 of shape (n_i,) each, n_i > 0.
        max_new_tokens: longest continuation.
        stops: ids that end one; the first fills up.
        device: the model's.
    """
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), int(stops[0]), dtype=torch.int64)
    seen = torch.zeros((len(prompts), length), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.from_numpy(prompt)
        seen[row, length - len(prompt) :] = 1
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
        eos_token_id=list(stops), pad_token_id=int(stops[0]),
    )  # fmt: skip
    output = generate(input_ids=ids.to(device), attention_mask=seen.to(device), generation_config=settings)
    found = []
    for new in output[:, length:].cpu().numpy():
        ends = np.flatnonzero(np.isin(new, stops))
        found.append(new[: ends[0]] if len(ends) else new)
    return found


def plain_generate(model: Any, **options: Any) -> torch.Tensor:
    """A model's `generate` without its own settings, from which it would take what a configuration leaves open.

    Args:
        model: a transformers causal LM.
        options: of `generate`.
    """
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        found: torch.Tensor = model.generate(**options)
        return found
    finally:
        model.generation_config = before


@lru_cache(maxsize=8)
def _tokenizer(path: str) -> PreTrainedTokenizerFast:
    return load_saved_tokenizer(path)
