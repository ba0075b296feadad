"""A problem whose prefix is a model trained elsewhere; its mixtures are trained one by one, by parts of the product."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opmix_ray.config.train import learning_rate
from opmix_ray.data.sampler import Sampler, SamplerState
from opmix_ray.data.store import gather
from opmix_ray.decision.budget import MOST_ASKED
from opmix_ray.decision.task import load_weights, texts_for
from opmix_ray.mixture import Mixture
from opmix_ray.model.loss import compute_context, evaluate_sets, target_losses, training_loss
from opmix_ray.train.loop import _optimizer
from problem_bench.problem import Problem
from problem_bench.truth import Bench

BATCH = 8  # sequences of an evaluation's forward pass


class PretrainedBench(Bench):
    """One such problem with one seed, which is that of the order of the data."""

    at_once = 1

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self.autocast = self.config.model.autocast
        self._model: Any = None
        self._base: list[torch.Tensor] = []

    def _begin(self) -> Any:
        """The model with the weights it came with."""
        if self._model is None:
            self._model = load_weights(self.config, self.prepared, None)
            self._base = [weight.detach().clone() for weight in self._model.parameters()]
        with torch.no_grad():
            for weight, value in zip(self._model.parameters(), self._base, strict=True):
                weight.copy_(value)
        return self._model

    def _losses(self, model: Any) -> dict[str, float]:
        found = evaluate_sets(model, self.aims, BATCH, autocast=self.autocast)
        return {name: round(one.mean, 5) for name, one in found.items()}

    def prefix(self) -> dict[str, Any]:
        """What the model loses now, and on every token that a decision may ask it about."""
        model = self._begin()
        mixture = self.start(self.domains)
        texts = texts_for(
            self.prepared, self.aims, most=MOST_ASKED,
            reported=self.config.evaluation.sequences, searched=self.config.search.sequences,
        )  # fmt: skip
        told = {n: target_losses(model, *held, BATCH, autocast=self.autocast) for n, held in texts.items()}
        return {
            "sampler": Sampler(self.sizes, self.config.train.batch_size, self.seed, mixture).state.to_dict(),
            "mixture": mixture.shares,
            "losses": {"0": self._losses(model)},
            "told": {name: nats.round(3).tolist() for name, nats in told.items()},
        }

    def runs(self, mixtures: list[Mixture], sampler: dict[str, Any]) -> list[dict[str, Any]]:
        """Train mixtures from the same weights; one record each."""
        return [self._run(mixture, sampler) for mixture in mixtures]

    def _run(self, mixture: Mixture, sampler: dict[str, Any]) -> dict[str, Any]:
        train, steps = self.config.train, self.problem.steps
        model = self._begin()
        model.train()
        optimizer = _optimizer(model, train)
        order = Sampler(self.sizes, train.batch_size, self.seed, mixture, SamplerState.from_dict(sampler))
        nats = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, train.optimizer, train.schedule)
            ids, mask = gather(self.stores, order.next_batch())
            with compute_context(self.autocast, "cpu"):
                loss, tokens, _ = training_loss(
                    model, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(mask)
                )
            (loss / tokens).backward()
            nats.append(round(float(loss.detach()), 1))
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.optimizer.clip_norm or 1e9)
            optimizer.step()
            optimizer.zero_grad()
        return {"mixture": mixture.shares, "losses": {str(steps): self._losses(model)}, "nats": nats}
