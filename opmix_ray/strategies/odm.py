"""Online data mixing: a bandit over domains, rewarded by training loss (Albalak et al. 2023, arXiv 2312.02406).

EXP3 with a moving average. With K domains, after every step, for each domain that had sequences in the batch,

    R_d  = a * R_d + (1 - a) * loss_d / pi_d
    e_t  = min(1 / K, sqrt(ln K / (K t)))
    pi_d = (1 - K e_t) * exp(e_(t-1) R_d) / sum_j exp(e_(t-1) R_j) + e_t

A step's batch holds whole sequences of several domains in exact proportion to pi, where the paper draws one domain
per micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opmix_ray.config import RunConfig
from opmix_ray.config.strategy import OdmConfig
from opmix_ray.mixture import Mixture
from opmix_ray.strategies.base import Strategy
from opmix_ray.train.callback import Moment, TrainingCallback


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
