"""How probes of some length rank mixtures, seen on a few fixed candidates.

Whether longer probes would decide otherwise shows in how this ranking changes from length to length. The candidates
are scored as in a search, by adding the probes up: a law of first order in the probes' own losses ranks single sets,
but the average of the sets hardly better than chance (docs/decisions.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from opmix_ray.data.held_out import HeldOut
from opmix_ray.model.base import BaseModel, model_from
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.model.probe import Probe
from opmix_ray.trials.trial import CandidateScorer

CANDIDATES = 12


@dataclass(frozen=True)
class Look:
    """One ranking.

    Args:
        steps: of the probes.
        objectives: of the candidates, nats per token.
        tokens, flops, seconds: what it cost.
    """

    steps: int
    objectives: list[float]
    tokens: int
    flops: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def fixed_candidates(components: int, seed: int) -> np.ndarray:
    """(CANDIDATES, C) interpolation weights, uniform on the simplex."""
    return np.random.default_rng([seed, 13]).dirichlet(np.ones(components), CANDIDATES)


def look(
    base: BaseModel,
    probes: Sequence[Probe],
    weights: np.ndarray,
    sets: HeldOut,
    objective: Mapping[str, float],
    batch_size: int,
    autocast: bool,
) -> Look:
    """Score candidates by adding up probes of equal length.

    Args:
        base: the main run's weights.
        probes: C of them.
        weights: (n, C).
        sets: held-out sequences.
        objective: weight of each set; those of the sets here are made to sum to 1.
        batch_size: sequences in one forward pass.
        autocast: compute in bfloat16.
    """
    began = time.monotonic()
    domains = sorted({name for probe in probes for name in probe.data})
    total = sum(objective[name] for name in sets)
    scorer = CandidateScorer(
        ProbeSet.build(model_from(base), probes, domains),
        sets,
        {name: objective[name] / total for name in sets},
        batch_size=batch_size,
        autocast=autocast,
    )
    scores = [scorer.score(w) for w in weights]
    return Look(
        len(probes[0].losses),
        [score.objective for score in scores],
        sum(score.tokens for score in scores),
        sum(score.flops for score in scores),
        time.monotonic() - began,
    )


def agreement(one: Look, other: Look) -> float:
    """Spearman's correlation of two rankings; 0 where a probe has diverged or all candidates are alike."""
    ranks = [rankdata(each.objectives) for each in (one, other)]
    finite = all(np.isfinite(each.objectives).all() and np.ptp(each.objectives) > 0 for each in (one, other))
    return float(np.corrcoef(*ranks)[0, 1]) if finite else 0.0
