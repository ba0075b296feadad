"""Answers do not depend on what they are computed together with."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from opmix_ray.data.questions import Choice, ChoiceSet, ExactSet
from opmix_ray.model import accuracy
from opmix_ray.model.accuracy import continuations, plain_generate, wrong_choices, wrong_continuations
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import evaluate_sets, sequence_losses
from tests.model.tiny_models import CONFIGS, VOCAB, made_probes, tiny

CPU = torch.device("cpu")


def sharp(name: str, seed: int = 0) -> Any:
    """A tiny model with opinions: its greedy choices are no ties."""
    model = tiny(name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def prompts(lengths: list[int], seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, length) for length in lengths]


def greedy(model: Any, prompt: np.ndarray, count: int, stops: set[int]) -> list[int]:
    """One prompt, one token at a time, without cache and without filling up."""
    ids, found = prompt.tolist(), []
    with torch.no_grad():
        for _ in range(count):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
            found.append(token)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.seconds
def test_filling_up_at_the_left_changes_no_continuation(name: str) -> None:
    model = sharp(name)
    asked = prompts([1, 2, 3, 9, 20, 31])
    stops = (0, *{greedy(model, prompt, 4, set())[-1] for prompt in asked[2:4]})  # some end early
    found = continuations(partial(plain_generate, model), asked, 8, stops, CPU)
    expected = [greedy(model, prompt, 8, set(stops)) for prompt in asked]
    assert [ids.tolist() for ids in found] == expected
    assert min(map(len, expected)) < max(map(len, expected))


def test_the_models_own_settings_for_sampling_play_no_part() -> None:
    model = sharp("llama")
    expected = continuations(partial(plain_generate, model), prompts([4, 7]), 8, (0,), CPU)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.max_length = 3
    found = continuations(partial(plain_generate, model), prompts([4, 7]), 8, (0,), CPU)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]


class Spelling:
    """A tokenizer for which every id is a word."""

    def decode(self, ids: np.ndarray, skip_special_tokens: bool) -> str:
        return "".join(f" {i}" for i in ids)


def exact(model: Any, asked: list[np.ndarray], right: list[bool]) -> ExactSet:
    answers = [
        " ".join(map(str, greedy(model, prompt, 5, {0}))) if well else "something else"
        for prompt, well in zip(asked, right, strict=True)
    ]
    return ExactSet(tuple(asked), tuple(answers), 5, (0,), "words")


@pytest.mark.seconds
def test_exact_match_counts_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_tokenizer", lambda path: Spelling())
    model, right = sharp("qwen2"), [True, False, True, True, False, True, True]
    asked = exact(model, prompts([9, 2, 30, 1, 4, 17, 3]), right)
    for batch_size in (1, 3, 8):
        wrong = wrong_continuations(partial(plain_generate, model), asked, batch_size, CPU)
        assert wrong.tolist() == [float(not well) for well in right]
    assert evaluate_sets(model, {"x": asked}, 4, autocast=False)["x"].mean == pytest.approx(2 / 7)


def choices(model: Any, right: list[bool], normalised: bool = False) -> ChoiceSet:
    """Questions whose likeliest choice, computed one by one, is the answer or is not."""
    rng = np.random.default_rng(5)
    found = []
    for number, well in enumerate(right):
        prompt = rng.integers(1, VOCAB, 1 + number)
        parts = [rng.integers(1, VOCAB, size) for size in rng.integers(1, 6, 3 + number % 2)]
        sizes = tuple(int(2 * len(part)) for part in parts)
        nats = []
        for part in parts:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *part]])).logits[0].double()
            logs = logits.log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(part) - 1)
            nats.append(-float(sum(logs[i, token] for i, token in zip(at, part, strict=True))))
        best = int(np.argmin(np.array(nats) / (np.array(sizes) if normalised else 1)))
        ids = tuple(np.concatenate([prompt, part]) for part in parts)
        answer = best if well else (best + 1) % len(parts)
        found.append(Choice(ids, (len(prompt),) * len(ids), sizes, answer))
    return ChoiceSet(tuple(found), normalised)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.seconds
def test_the_likeliest_choice_is_taken(name: str, normalised: bool) -> None:
    model, right = sharp(name), [True, True, False, True, False, True]
    asked = choices(model, right, normalised)
    for batch_size in (1, 4, 64):
        wrong = wrong_choices(partial(sequence_losses, model), asked, batch_size, CPU)
        assert wrong.tolist() == [float(not well) for well in right]
    assert sorted(len(q.ids) for q in asked.questions) == [3, 3, 3, 4, 4, 4]


def test_normalising_by_length_can_change_the_choice() -> None:
    model = sharp("llama")
    plain = choices(model, [True] * 12)
    wrong = wrong_choices(
        partial(sequence_losses, model), ChoiceSet(plain.questions, length_normalised=True), 8, CPU
    )
    assert 0 < wrong.sum() < 12


@pytest.mark.seconds
def test_a_simulated_model_answers_like_a_merged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions go through the interpolator like sequences do, beside them."""
    monkeypatch.setattr(accuracy, "_tokenizer", lambda path: Spelling())
    model = sharp("llama")
    probes = made_probes(model, 2)
    interpolator = Interpolator(ProbeSet.build(model, probes, ["d0", "d1"]), device="cpu")
    interpolator.set(np.array([0.4, 0.6]))
    ids = np.stack(prompts([16, 16, 16]))
    merged = interpolator.model
    sets = {
        "text": (ids, np.ones_like(ids, dtype=bool)),
        "quiz": choices(merged, [True, False, True]),
        "said": exact(merged, prompts([3, 8]), [True, False]),
    }
    found = interpolator.losses(sets, 2)
    assert found["quiz"].nats.tolist() == [0, 1, 0]
    assert found["said"].mean == 0.5
    assert found["said"].tokens.tolist() == [1, 1]
    assert found["text"].mean > 1
