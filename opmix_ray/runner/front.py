"""The front between evaluation sets: what one of them costs the others, by the law of a decision.

points = front(law, ["code", "prose"], prior=mixture, kl=0.05, lower={}, upper={}, current=mixture)
points[0].losses, points[0].mixture
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opmix_ray.decision.propose import propose
from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture

MOST_POINTS = 40
SAME = 1e-4  # nats per token within which two points are one


@dataclass(frozen=True)
class Point:
    """One mixture of the front.

    Args:
        weights: of the sets in the mean loss that it minimises.
        mixture: share by domain.
        losses: predicted by set at the end of the stage, nats per token.
    """

    weights: dict[str, float]
    mixture: dict[str, float]
    losses: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def front(
    law: FittedLaw,
    sets: Sequence[str],
    *,
    prior: Mixture,
    kl: float,
    lower: Mapping[str, float],
    upper: Mapping[str, float],
    current: Mixture,
    expand: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> list[Point]:
    """Mixtures of which none is better than another on all sets, in the order of the first set's loss.

    Each is what a decision proposes for the weighted mean loss with other weights, evenly spread over all there are.

    Args:
        law: of the decision.
        sets: two or more of its metrics.
        prior, kl, lower, upper, current, expand, seed: as for `propose`.
    """
    found = []
    for weights in _weights(len(sets)):
        by_set = dict(zip(sets, weights, strict=True))
        asked = FittedLaw(
            law.name, law.domains, law.metric_names,
            np.array([by_set.get(name, 0.0) for name in law.metric_names]), law.responses, table=law.table,
        )  # fmt: skip
        proposal = propose(
            asked, prior=prior, kl=kl, lower=lower, upper=upper, current=current, expand=expand, seed=seed
        )
        mixture = proposal.leaves or proposal.mixture
        found.append(Point(by_set, mixture.shares, {name: proposal.predicted[name] for name in sets}))
    return sorted(_best(found), key=lambda point: tuple(point.losses.values()))


def _weights(count: int) -> list[tuple[float, ...]]:
    """Weights on an even grid, all of sum 1; with many sets each alone, and all together."""
    for parts in (10, 6, 5, 4, 3, 2):
        grid = (
            [row for row in itertools.product(range(parts + 1), repeat=count) if sum(row) == parts]
            if ((parts + 1) ** count <= 100_000)
            else []
        )
        if 0 < len(grid) <= MOST_POINTS:
            return [tuple(value / parts for value in row) for row in grid]
    alone = [tuple(float(k == own) for k in range(count)) for own in range(count)]
    return [*alone, tuple(1 / count for _ in range(count))]


def _best(points: Sequence[Point]) -> list[Point]:
    """Those that no other is better than, each once."""
    losses = np.array([list(point.losses.values()) for point in points])
    kept: list[int] = []
    for k, row in enumerate(losses):
        worse = (losses <= row + SAME).all(axis=1) & (losses < row - SAME).any(axis=1)
        if not worse.any() and all(np.abs(losses[other] - row).max() > SAME for other in kept):
            kept.append(k)
    return [points[k] for k in kept]
