"""On-policy self-distillation for instruction tuning (SDFT: Shenfeld et al. 2026, arXiv 2601.19897).

The student answers a prompt x by sampling: y ~ p(. | x). The teacher is the same model, a moving average of its weights
since the stage began, shown a demonstration first: q(. | x, d, x). The loss is the reverse KL on the student's tokens,
over the whole vocabulary,

    mean over t of KL( p(. | x, y_<t) || q(. | x, d, x, y_<t) )

Prompts and demonstrations are read from the packed training rows: what does not count in the loss, and the answer
that follows. A prompt that a row cuts off keeps its end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import SelfDistillationConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.model.loss import sequence_losses, training_loss
from opmix_ray.strategies.base import Strategy
from opmix_ray.strategies.continual import Sequential
from opmix_ray.train.callback import TrainingCallback

Example = tuple[torch.Tensor, torch.Tensor]  # ids of a prompt and of its demonstration


@dataclass(frozen=True)
class Distillation(TrainingCallback):
    """Self-distillation inside the main run."""

    settings: SelfDistillationConfig = field(default_factory=SelfDistillationConfig)

    def module(self, model: Any) -> nn.Module:
        return DistillationModule(model, self.settings)


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
        if config.train.strategy == "fsdp2" and config.train.workers > 1:
            raise UserError(
                "`self-distillation` answers with the whole model",
                key="train.strategy",
                value="fsdp2",
                remedy="use ddp, or one worker",
            )

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        return Sequential().start(config, stage, old, tokens)

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback:
        return Distillation(caps, config.objective(), config.strategies.self_distillation)


class DistillationModule(nn.Module):
    """A causal LM whose training loss is the reverse KL to itself with a demonstration.

    Args:
        model: the student, and what the teacher begins as.
        settings: how the student answers, and how the teacher follows it.
    """

    def __init__(self, model: Any, settings: SelfDistillationConfig) -> None:
        super().__init__()
        self.model, self._settings = model, settings
        self.teacher = model
        if settings.teacher_rate < 1:
            self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self._trained = self._forwarded = 0

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, per_sequence: bool = False) -> Any:
        """(loss, targets, None) of packed rows (n, L): the mean reverse KL times the rows' number of targets."""
        if per_sequence:
            return sequence_losses(self.model, ids, mask)
        targets = mask[:, 1:].sum()
        examples = [e for row, own in zip(ids, mask, strict=True) for e in examples_of(row, own)]
        examples = [e for e in examples if self._fits(e)]
        if not examples:  # several workers need the same passes all the same
            nats, _, _ = training_loss(self.model, ids, torch.ones_like(mask))
            return 0.0 * nats, targets, None
        answers, valid = self._answer([prompt for prompt, _ in examples])
        plain = [prompt for prompt, _ in examples]
        shown = [torch.cat([prompt, demonstration, prompt]) for prompt, demonstration in examples]
        student = _log_probabilities(self.model, plain, answers, valid)
        with torch.no_grad():
            teacher = _log_probabilities(self.teacher, shown, answers, valid)
        divergence = reverse_kl(student, teacher)[valid]
        own = int(valid.sum())
        self._trained += sum(map(len, plain)) + own
        self._forwarded += sum(map(len, plain)) + sum(map(len, shown)) + 2 * own  # answering, teaching
        return divergence.mean() * targets, targets, None

    def take_counts(self) -> tuple[int, int]:
        """Tokens trained on and tokens only passed forward since the last call."""
        found = self._trained, self._forwarded
        self._trained = self._forwarded = 0
        return found

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the teacher follow the student."""
        for own, other in self._pairs():
            own.lerp_(other, self._settings.teacher_rate)

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the teacher's weights beside the student's moments, where a checkpoint takes them along."""
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

    def _fits(self, example: Example) -> bool:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        prompt, demonstration = example
        length = 2 * len(prompt) + len(demonstration) + self._settings.max_new_tokens
        return limit is None or length <= limit

    @torch.no_grad()
    def _answer(self, prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's answers (n, T) and which of their tokens count: all up to the end-of-text token."""
        eos = self.model.config.eos_token_id
        eos = eos[0] if isinstance(eos, list) else eos
        ids, seen = _left_padded(prompts, eos)
        training = self.model.training
        self.model.eval()
        out = self.model.generate(
            input_ids=ids, attention_mask=seen, max_new_tokens=self._settings.max_new_tokens, do_sample=True,
            temperature=self._settings.temperature, top_k=0, top_p=1.0, use_cache=True, pad_token_id=eos,
            eos_token_id=eos,
        )  # fmt: skip
        self.model.train(training)
        answers = out[:, ids.shape[1] :]
        ended = (answers == eos).long().cumsum(dim=1) - (answers == eos).long()
        return answers, ended == 0


def _log_probabilities(
    model: Any, contexts: list[torch.Tensor], answers: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of the next token at every token of the answers: (n, T, V)."""
    ids, seen = _left_padded(contexts, 0)
    ids = torch.cat([ids, answers], dim=1)
    seen = torch.cat([seen, valid.long()], dim=1)
    positions = (seen.cumsum(dim=1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits
    length = answers.shape[1]
    return F.log_softmax(logits[:, -length - 1 : -1].float(), dim=-1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) of log-probabilities (..., V), nats: (...)."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


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
