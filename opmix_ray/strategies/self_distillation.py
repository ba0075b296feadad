"""On-policy self-distillation for instruction tuning (SDFT: Shenfeld et al. 2026, arXiv 2601.19897).

The student answers a prompt x by sampling, `rollouts` times: y ~ p(. | x). The teacher is the same model, a moving
average of its weights since the stage began, shown a demonstration first: q(. | x, d, x). The loss of a prompt is the
reverse KL on the student's tokens, over the whole vocabulary,

    mean over y of the mean over t of KL( p(. | x, y_<t) || q(. | x, d, x, y_<t) )

and counts as much as the tokens of its demonstration would in plain training. Prompts and demonstrations are read from
the packed training rows: what does not count in the loss, and the answer that follows. A prompt that a row cuts off
keeps its end. What is sampled depends on seed, step and row, whichever worker has the row. The end-of-text token after
a demonstration is left out: a model takes what stands before one for another document, and would not look at it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import SelfDistillationConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.model.accuracy import plain_generate
from opmix_ray.model.loss import CHUNK_LOGITS, has_plain_head, sequence_losses, training_loss
from opmix_ray.model.probe import base_causal_lm
from opmix_ray.strategies.base import Costs, Strategy, refuse_divided
from opmix_ray.strategies.rules import Sequential
from opmix_ray.train.callback import TrainingCallback

Example = tuple[torch.Tensor, torch.Tensor]  # ids of a prompt and of its demonstration
Head = Callable[[torch.Tensor], torch.Tensor]
LOOKED_AT = 16  # rows of a domain from which the cost of a step is forecast


@dataclass(frozen=True)
class Distillation(TrainingCallback):
    """Self-distillation inside the main run."""

    settings: SelfDistillationConfig = field(default_factory=SelfDistillationConfig)
    seed: int = 0

    def module(self, model: Any) -> nn.Module:
        return DistillationModule(model, self.settings, self.seed)


class SelfDistillation(Strategy):
    """Self-distillation inside the main run; needs prompts and answers."""

    decides = "never"

    def check(self, config: RunConfig) -> None:
        sources = config.data.domains.values()
        if not any(source.prompt_column or source.messages_column for source in sources):
            raise UserError(
                "`self-distillation` needs prompts, and no domain has any",
                key="strategy",
                remedy="give `prompt_column` and `completion_column`, or `messages_column`",
            )
        refuse_divided(config, "`self-distillation` answers with the whole model")

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        return Sequential().start(config, stage, old, tokens)

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback:
        return Distillation(caps, config.objective(), config.strategies.self_distillation, config.seed)

    def training_cost(
        self, config: RunConfig, costs: Costs, mixtures: Callable[[], Sequence[Mixture]]
    ) -> float:
        settings, total = config.strategies.self_distillation, 0.0
        by_domain: dict[str, float] = {}
        for stage, mixture in zip(config.stages, mixtures(), strict=True):
            for name, share in mixture.items():
                if share > 0 and name not in by_domain:
                    rows = costs.rows(name, LOOKED_AT)
                    by_domain[name] = sum(_row_cost(*row, settings, costs) for row in rows) / len(rows)
                total += stage.steps * config.train.batch_size * share * by_domain.get(name, 0.0)
        if not total:
            raise UserError(
                "leaves no prompt that the teacher can read twice, with a demonstration and an answer",
                key="strategies.self_distillation.max_new_tokens", value=settings.max_new_tokens,
                remedy="lower it, take a model with a longer context, or domains with prompts in every stage",
            )  # fmt: skip
        return total


def _row_cost(ids: torch.Tensor, mask: torch.Tensor, settings: SelfDistillationConfig, costs: Costs) -> float:
    """FLOPs of a packed row, with answers as long as the demonstrations."""
    total = 0.0
    for prompt, demonstration in examples_of(ids, mask):
        if fits(costs.model, (prompt, demonstration), settings):
            seen = len(teacher_context(costs.model, (prompt, demonstration)))
            counts = _passed(len(prompt), seen, min(len(demonstration), settings.max_new_tokens))
            total += counts["main"] * costs.train + (counts["answers"] + counts["teacher"]) * costs.forward
    return settings.rollouts * total


def _passed(prompt: int, shown: int, answer: int) -> dict[str, int]:
    """Tokens of one answer by purpose in the ledger: trained on, generated, and scored by the teacher."""
    return {"main": prompt + answer, "answers": prompt + answer, "teacher": shown + answer}


class DistillationModule(nn.Module):
    """A causal LM whose training loss is the reverse KL to itself with a demonstration.

    Args:
        model: the student, and what the teacher begins as.
        settings: how the student answers, and how the teacher follows it.
        seed: of the answers.
    """

    def __init__(self, model: Any, settings: SelfDistillationConfig, seed: int = 0) -> None:
        super().__init__()
        self.model, self._settings, self._seed = model, settings, seed
        self.teacher = model
        if settings.teacher_rate < 1:
            self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self._step = 0
        self._counts = dict.fromkeys(("main", "answers", "teacher"), 0)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, per_sequence: bool = False) -> Any:
        """(sum of loss, targets, None) of packed rows (n, L): a prompt's loss times the tokens of its demonstration."""
        if per_sequence:
            return sequence_losses(self.model, ids, mask)
        targets, rollouts = mask[:, 1:].sum(), self._settings.rollouts
        asked: list[Example] = []
        draws: list[np.ndarray] = []
        for row, own in zip(ids, mask, strict=True):
            found = examples_of(row, own)
            numbers = self._draws(row, len(found))
            for place, example in enumerate(found):
                if fits(self.model, example, self._settings):
                    asked += [example] * rollouts
                    draws.append(numbers[place])
        if not asked:  # several workers need the same passes all the same
            nats, _, _ = training_loss(self.model, ids, torch.ones_like(mask))
            return 0.0 * nats, targets, None
        plain = [prompt for prompt, _ in asked]
        before = [teacher_context(self.model, example) for example in asked]
        answers, valid = self._answer(plain, torch.from_numpy(np.concatenate(draws)).to(ids.device))
        lengths = valid.sum(dim=1)
        student = _states(self.model, plain, answers, valid)
        with torch.no_grad():
            teacher = _states(self.teacher, before, answers, valid)
        divergence = _divergence(*student, *teacher)  # (k,), the answers' tokens one after another
        weights = torch.tensor([len(demonstration) for _, demonstration in asked], device=ids.device)
        by_token = (weights / (rollouts * lengths)).repeat_interleave(lengths)
        for prompt, context, length in zip(plain, before, lengths.tolist(), strict=True):
            for purpose, count in _passed(len(prompt), len(context), length).items():
                self._counts[purpose] += count
        return (divergence * by_token).sum(), targets, None

    def take_counts(self) -> dict[str, int]:
        """Tokens trained on, generated and scored since the last call, by purpose in the ledger."""
        found, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return found

    def begin_step(self, step: int) -> None:
        """Sample for a global step."""
        self._step = step

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the teacher follow the student."""
        for own, other in self._pairs():
            own.lerp_(other, self._settings.teacher_rate)

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the teacher's weights among the student's moments, which a checkpoint holds."""
        for own, other in self._pairs():
            if optimizer.state[other]:
                optimizer.state[other]["teacher"] = own

    @torch.no_grad()
    def recall(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the teacher's weights from where `keep` put them."""
        for own, other in self._pairs():
            if "teacher" in optimizer.state[other]:
                own.copy_(optimizer.state[other].pop("teacher"))

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Every weight of the teacher and of the student."""
        if self.teacher is self.model:
            return []
        return list(zip(self.teacher.parameters(), self.model.parameters(), strict=True))

    def _draws(self, row: torch.Tensor, prompts: int) -> np.ndarray:
        """Uniform numbers for the tokens of the answers to a row's prompts: (prompts, rollouts, T)."""
        digest = hashlib.blake2b(row.cpu().numpy().tobytes(), digest_size=8).digest()
        random = np.random.default_rng([self._seed, self._step, int.from_bytes(digest, "little")])
        return random.random((prompts, self._settings.rollouts, self._settings.max_new_tokens))

    @torch.no_grad()
    def _answer(self, prompts: list[torch.Tensor], draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's answers (n, T) and which of their tokens count: all up to the end-of-text token."""
        eos = self.model.config.eos_token_id
        eos = eos[0] if isinstance(eos, list) else eos
        ids, seen = _left_padded(prompts, eos)
        settings = GenerationConfig(
            max_new_tokens=self._settings.max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
            pad_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
        drawn = _Drawn(draws, self._settings.temperature, ids.shape[1])
        training = self.model.training
        self.model.eval()
        out = plain_generate(
            self.model, input_ids=ids, attention_mask=seen, generation_config=settings,
            logits_processor=LogitsProcessorList([drawn]),
        )  # fmt: skip
        self.model.train(training)
        answers = out[:, ids.shape[1] :]
        ended = (answers == eos).long().cumsum(dim=1) - (answers == eos).long()
        return answers, ended == 0


class _Drawn(LogitsProcessor):
    """Leaves one token to `generate`: the one that a uniform number falls on.

    Args:
        draws: numbers in [0, 1), (n, T).
        temperature: of the sampling.
        prompt: length of the prompts.
    """

    def __init__(self, draws: torch.Tensor, temperature: float, prompt: int) -> None:
        self._draws, self._temperature, self._prompt = draws, temperature, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        at = input_ids.shape[1] - self._prompt
        sums = (scores.double() / self._temperature).softmax(dim=-1).cumsum(dim=-1)
        token = torch.searchsorted(sums, self._draws[:, at : at + 1] * sums[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, token.clamp_max(sums.shape[1] - 1), 0.0)


def _states(
    model: Any, contexts: list[torch.Tensor], answers: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, Head]:
    """What the head makes the k counting tokens of the answers from, (k, H), and the head."""
    ids, seen = _left_padded(contexts, 0)
    ids = torch.cat([ids, answers], dim=1)
    seen = torch.cat([seen, valid.long()], dim=1)
    positions = (seen.cumsum(dim=1) - 1).clamp_min(0)
    causal, part = base_causal_lm(model), slice(-answers.shape[1] - 1, -1)
    inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": positions, "use_cache": False}
    if has_plain_head(causal):
        return causal.base_model(**inputs).last_hidden_state[:, part][valid], causal.get_output_embeddings()
    return causal(**inputs).logits[:, part][valid], nn.Identity()


def _divergence(student: torch.Tensor, head: Head, teacher: torch.Tensor, other: Head) -> torch.Tensor:
    """Reverse KL of every token, (k,). Where there are many, the backward pass computes their logits again."""
    weight = getattr(head, "weight", None)
    size = max(1, CHUNK_LOGITS // (student.shape[1] if weight is None else weight.shape[0]))
    if len(student) <= size:
        return _of_heads(student, head, teacher, other)
    parts = [slice(start, start + size) for start in range(0, len(student), size)]
    return torch.cat(
        [
            checkpoint(_of_heads, student[part], head, teacher[part], other, use_reentrant=False)
            for part in parts
        ]
    )


def _of_heads(student: torch.Tensor, head: Head, teacher: torch.Tensor, other: Head) -> torch.Tensor:
    with torch.no_grad():
        theirs = F.log_softmax(other(teacher).float(), dim=-1)
    return reverse_kl(F.log_softmax(head(student).float(), dim=-1), theirs)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) of log-probabilities (..., V), nats: (...)."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


def teacher_context(model: Any, example: Example) -> torch.Tensor:
    """What the teacher reads before an answer: the prompt with its demonstration, and the prompt again.

    The demonstration's end-of-text token stays only where it ends turns of a conversation, as it does in the prompt.
    """
    prompt, demonstration = example
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    last = int(demonstration[-1])
    if last in ends and last not in prompt.tolist():
        demonstration = demonstration[:-1]
    return torch.cat([prompt, demonstration, prompt])


def fits(model: Any, example: Example, settings: SelfDistillationConfig) -> bool:
    """Whether the model can read as much as the teacher has to."""
    limit = getattr(model.config, "max_position_embeddings", None)
    prompt, demonstration = example
    length = 2 * len(prompt) + len(demonstration) + settings.max_new_tokens
    return limit is None or length <= limit


def examples_of(ids: torch.Tensor, mask: torch.Tensor) -> list[Example]:
    """Prompts and answers in one packed row; ids and mask of shape (L,)."""
    edges = torch.nonzero(mask[1:] != mask[:-1]).flatten().add(1).tolist()
    bounds = [0, *edges, len(ids)]
    parts = list(pairwise(bounds))
    return [(ids[a:b], ids[c:d]) for (a, b), (c, d) in pairwise(parts) if not mask[a] and mask[c]]


def _left_padded(rows: list[torch.Tensor], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths as ids and attention mask (n, longest), padded on the left."""
    longest = max(map(len, rows))
    ids = torch.stack([F.pad(row, (longest - len(row), 0), value=fill) for row in rows])
    seen = torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return ids, seen
