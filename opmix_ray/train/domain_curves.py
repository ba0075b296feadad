"""The training loss of every domain over the steps of a run: what the main run's own batches say for nothing.

curves.losses()        # (B, D) nats per token, B blocks of steps
curves.steps           # (B,) the global step at which each block ends
DomainCurves.from_dict(curves.to_dict())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_BLOCKS, LEAST_BLOCKS = 200, 20  # of a stage
MOST_VALUES = 20_000  # blocks times domains, so that a checkpoint stays small where domains are many


def block_length(steps: int, domains: int) -> int:
    """Steps in one block of a stage, by rule: 200 blocks at most, and fewer where there are more than 100 domains.

    Args:
        steps: of the stage.
        domains: of the stage.
    """
    blocks = min(MOST_BLOCKS, max(LEAST_BLOCKS, MOST_VALUES // max(1, domains)))
    return -(-steps // blocks)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation sets, measured in the main run.

    Args:
        step: global step.
        losses: nats per token by set, or the rate of wrong answers.
    """

    step: int
    losses: dict[str, float]


@dataclass(frozen=True, eq=False)
class DomainCurves:
    """Sums over blocks of steps, one after the other without a gap.

    Args:
        domains: D names.
        start: global step at which the first block begins.
        steps: (B,) global step at which each block ends; the next one begins there.
        nats: (B, D) summed training loss.
        tokens: (B, D) target tokens.
    """

    domains: tuple[str, ...]
    start: int
    steps: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray

    def losses(self) -> np.ndarray:
        """Mean loss in nats per token, (B, D); NaN where a block has no token of a domain."""
        return np.divide(self.nats, self.tokens, out=np.full(self.nats.shape, np.nan), where=self.tokens > 0)

    def then(self, later: DomainCurves) -> DomainCurves:
        """These blocks and those of a later segment, over the domains of both."""
        domains = tuple(dict.fromkeys([*self.domains, *later.domains]))
        parts = [part.over(domains) for part in (self, later)]
        return DomainCurves(
            domains=domains,
            start=self.start,
            steps=np.concatenate([part.steps for part in parts]),
            nats=np.concatenate([part.nats for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
        )

    def over(self, domains: tuple[str, ...]) -> DomainCurves:
        """The same over other domains, in their order; what was not read has no tokens."""
        place = {name: i for i, name in enumerate(self.domains)}
        known = [(i, place[name]) for i, name in enumerate(domains) if name in place]
        to, of = ([pair[k] for pair in known] for k in (0, 1))
        nats, tokens = (
            np.zeros((len(self.steps), len(domains)), kept.dtype) for kept in (self.nats, self.tokens)
        )
        nats[:, to], tokens[:, to] = self.nats[:, of], self.tokens[:, of]
        return DomainCurves(domains, self.start, self.steps, nats, tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "domains": list(self.domains),
            "start": self.start,
            "steps": self.steps.tolist(),
            "nats": self.nats.tolist(),
            "tokens": self.tokens.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DomainCurves:
        """The inverse of `to_dict`."""
        shape = len(values["steps"]), len(values["domains"])
        return cls(
            domains=tuple(values["domains"]),
            start=int(values["start"]),
            steps=np.array(values["steps"], dtype=np.int64),
            nats=np.array(values["nats"], dtype=np.float64).reshape(shape),
            tokens=np.array(values["tokens"], dtype=np.int64).reshape(shape),
        )
