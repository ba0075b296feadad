"""Strategies inside the main run: ODM and Aioli move its mixture, merging moves its weights at the end of a stage.

Online data mixing: a bandit over domains, rewarded by training loss (Albalak et al. 2023, arXiv 2312.02406). It is EXP3
with a moving average. With K domains, after every step, for each domain that had sequences in the batch,

    R_d  = a * R_d + (1 - a) * loss_d / pi_d
    e_t  = min(1 / K, sqrt(ln K / (K t)))
    pi_d = (1 - K e_t) * exp(e_(t-1) R_d) / sum_j exp(e_(t-1) R_j) + e_t

A step's batch holds whole sequences of several domains in exact proportion to pi, where the paper draws one domain
per micro-batch.

Aioli: sweeps over perturbed mixtures inside the main run (Chen et al. 2024, arXiv 2411.05735, algorithms 1 and 2). A
round begins with a sweep: every domain j in turn is trained on with the mixture that gives it `one_hot` and the
others the rest; the fall of every held-out loss i over its steps, per step, is `B[i, j]`. The interactions solve
`B = A P^T` with P the sweep's mixtures; shifted to be at least 0 and scaled to sum to 1, then smoothed over rounds,
they move the mixture for the rest of the round: `p_j` in proportion to `exp(eta * sum_i A[i, j])`, started from the
stage's first mixture. Sweeps count as training; their measurements as search.

Merging: a stage trains on what is new alone, and ends somewhere between the weights it began with and its last ones,

    theta = theta_0 + a * (theta_T - theta_0)

with the `a` of .1, .2 to 1 that is best for the objective on the held-out sequences that decisions may look at. The
published code of OP-Mix (arXiv 2605.15220; commit 0b4469c) has it as `lora_merge`, where `a` comes from a law and the
stage trains an adapter. Here it trains all weights, as all strategies do: the interpolation of fine-tuned and first
weights of Wortsman et al. 2021, arXiv 2109.01903.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.config.strategy import AioliConfig, OdmConfig
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.base import Costs, Strategy, refuse_divided
from opmix_ray.strategies.rules import Sequential
from opmix_ray.train.callback import Moment, TrainingCallback
from opmix_ray.train.workers import LossModule


@dataclass(frozen=True)
class Bandit(TrainingCallback):
    """The bandit inside the main run."""

    settings: OdmConfig = field(default_factory=OdmConfig)

    @property
    def watches_losses(self) -> bool:
        return True

    def steer(self, memory: dict[str, Any], moment: Moment) -> Mixture | None:
        if moment.done == 0:
            return None
        names = moment.mixture.domains
        rewards = memory.setdefault("rewards", dict.fromkeys(names, 0.0))
        update_rewards(rewards, moment.losses, moment.mixture, self.settings.smoothing)
        warmup = math.ceil(self.settings.warmup_fraction * moment.steps)
        if moment.done < warmup:
            return None
        turn = memory["turn"] = memory.get("turn", 0) + 1
        policy = exp3_policy(np.array([rewards[name] for name in names]), turn)
        return Mixture.from_array(names, policy)


class Odm(Strategy):
    """Online data mixing inside the main run."""

    decides = "never"

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback:
        return Bandit(caps, config.objective(), config.strategies.odm)


def update_rewards(
    rewards: dict[str, float], losses: Mapping[str, float], policy: Mapping[str, float], smoothing: float
) -> None:
    """Move the estimated rewards of the domains that were seen, importance-weighted, in place."""
    for name, loss in losses.items():
        if policy[name] > 0 and math.isfinite(loss):
            rewards[name] = smoothing * rewards[name] + (1 - smoothing) * loss / policy[name]


def exploration(turn: int, domains: int) -> float:
    """e_t of the bandit; turns count from 1, and e_0 is 1 / K."""
    if turn < 1:
        return 1 / domains
    return min(1 / domains, math.sqrt(math.log(domains) / (domains * turn)))


def exp3_policy(rewards: np.ndarray, turn: int) -> np.ndarray:
    """Sampling probabilities (D,) from estimated rewards (D,)."""
    count = len(rewards)
    scaled = exploration(turn - 1, count) * rewards
    weights = np.exp(scaled - scaled.max())
    explore = exploration(turn, count)
    return (1 - count * explore) * weights / weights.sum() + explore


OLD = 0.1  # share of the old value in the smoothed interactions: the paper's gamma, algorithm 2


@dataclass(frozen=True)
class Sweeps(TrainingCallback):
    """Aioli inside the main run."""

    settings: AioliConfig = field(default_factory=AioliConfig)

    def measures(self, memory: dict[str, Any], moment: Moment) -> bool:
        return moment.done in self._edges(moment)

    def steer(self, memory: dict[str, Any], moment: Moment) -> Mixture | None:
        names = moment.mixture.domains
        edges = self._edges(moment)
        if moment.done not in edges or len(names) < 2:
            return None
        if "first" not in memory:
            memory.update(first=moment.mixture.shares, falls={}, smooth=None)
        position = edges.index(moment.done) % (
            len(names) + 1
        )  # D beginnings of a domain's steps, then the end
        assert moment.held_out is not None
        if position > 0:
            length = moment.done - edges[edges.index(moment.done) - 1]
            fall = {n: (memory["before"][n] - moment.held_out[n]) / length for n in moment.held_out}
            memory["falls"][names[position - 1]] = fall
        memory["before"] = dict(moment.held_out)
        if position < len(names):
            return Mixture.from_array(names, perturbed(len(names), self.settings.one_hot)[position])
        return self._learn(memory, names)

    def _learn(self, memory: dict[str, Any], names: Sequence[str]) -> Mixture:
        """The mixture for the rest of the round."""
        settings = self.settings
        used = [name for name, weight in self.objective.items() if weight > 0]
        falls = np.array([[memory["falls"][n][m] * self.objective[m] for n in names] for m in used])
        found = interactions(falls, settings.one_hot).sum(axis=0)
        memory["falls"] = {}
        if memory["smooth"] is not None:
            found = OLD * np.array(memory["smooth"]) + (1 - OLD) * found
        memory["smooth"] = found.tolist()
        first = np.array([memory["first"][name] for name in names])
        return Mixture.from_array(names, first * np.exp(settings.eta * found))

    def _edges(self, moment: Moment) -> list[int]:
        """Steps at which a sweep's parts begin and end, over the whole stage."""
        count = len(moment.mixture.domains)
        length = moment.steps // self.settings.rounds
        part = max(1, round(length * self.settings.sweep_fraction / count))
        if part * count >= length:  # no room for the rest of a round
            return []
        return [r * length + k * part for r in range(self.settings.rounds) for k in range(count + 1)]


class Aioli(Strategy):
    """Aioli inside the main run."""

    decides = "never"

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback:
        return Sweeps(caps, config.objective(), config.strategies.aioli)

    def live_cost(self, config: RunConfig, domains: int, costs: Costs) -> float:
        looks = config.strategies.aioli.rounds * (domains + 1) if domains > 1 else 0
        return looks * costs.look_of(config.objective())


def perturbed(domains: int, one_hot: float) -> np.ndarray:
    """The sweep's mixtures, one a row: (D, D)."""
    rest = (1 - one_hot) / (domains - 1)
    return np.full((domains, domains), rest) + (one_hot - rest) * np.eye(domains)


def interactions(falls: np.ndarray, one_hot: float) -> np.ndarray:
    """How much each domain's data lower each loss, at least 0 and summing to 1.

    Args:
        falls: (M, D) fall of loss m under the sweep's mixture of domain d.
        one_hot: share of the domain whose turn it was.
    """
    found = np.linalg.solve(perturbed(falls.shape[1], one_hot), falls.T).T
    found = found - min(0.0, found.min())
    total = found.sum()
    return found / total if total > 0 else np.full_like(found, 1 / found.size)


PARTS = tuple(number / 10 for number in range(10, 0, -1))  # of the way to the trained weights, that are tried
KEPT = "first"  # the stage's first weights, among the moments in a checkpoint


@dataclass(frozen=True)
class Merging(TrainingCallback):
    """Merging at the end of a stage."""

    config: RunConfig = field(kw_only=True)

    def module(self, model: Any) -> MergingModule:
        return MergingModule(model, self.config)


class Merge(Strategy):
    """New domains alone; at a stage's end as much of the way as is best."""

    decides = "never"

    def check(self, config: RunConfig) -> None:
        refuse_divided(config, "`merging` keeps the whole weights that a stage began with")

    def start(
        self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: Mapping[str, float]
    ) -> Mixture | None:
        return Sequential().start(config, stage, old, tokens)

    def callback(self, config: RunConfig, caps: dict[str, float]) -> TrainingCallback:
        return Merging(caps, config.objective(), config=config)

    def live_cost(self, config: RunConfig, domains: int, costs: Costs) -> float:
        return len(PARTS) * costs.look_of(config.objective())


class MergingModule(LossModule):
    """A causal LM that remembers the weights it began with.

    Args:
        model: as the stage begins.
        config: the run, with the objective of the stage.
    """

    def __init__(self, model: Any, config: RunConfig) -> None:
        super().__init__(model)
        self._config = config
        self._first: list[torch.Tensor] = [weight.detach().clone() for weight in model.parameters()]

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the first weights among the moments, which a checkpoint holds; at the stage's end they are not needed."""
        for weight in self.model.parameters():
            optimizer.state[weight].pop(KEPT, None)
        for first, weight in self._pairs():
            if optimizer.state[weight]:
                optimizer.state[weight][KEPT] = first

    @torch.no_grad()
    def recall(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the first weights from where `keep` put them."""
        for first, weight in self._pairs():
            if KEPT in optimizer.state[weight]:
                first.copy_(optimizer.state[weight].pop(KEPT))

    @torch.no_grad()
    def end_stage(
        self, held_out: Callable[[], Mapping[str, float]], bytes_per_token: Mapping[str, float | None]
    ) -> None:
        """Move the weights back to where the objective is best; of equal ones the nearest to the trained.

        Args:
            held_out: measures the loss of every set with the weights as they are.
            bytes_per_token: by evaluation set.
        """
        objective = self._config.objective_of(bytes_per_token)
        last = [weight.detach().clone() for weight in self.model.parameters()]
        values = {}
        for part in PARTS:
            self._move(last, part)
            values[part] = objective.at(held_out())
        self._move(last, min(values, key=values.__getitem__))
        self._first = []

    def _move(self, last: list[torch.Tensor], part: float) -> None:
        for (first, weight), end in zip(self._pairs(), last, strict=True):
            weight.data.copy_(end if part == 1 else torch.lerp(first, end, part))

    def _pairs(self) -> list[tuple[torch.Tensor, torch.nn.Parameter]]:
        """Every weight as the stage began and as it is; none once the stage has ended."""
        return list(zip(self._first, self.model.parameters(), strict=bool(self._first)))
