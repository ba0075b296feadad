"""A law that minimises what is asked for: perplexity, bits per byte or a package's own number instead of the mean loss.

law = aimed(law, config.objective_of(bytes_per_token))
law.objective(ratios), law.gradient(ratios), law.objective_std(ratios)       # in objective.unit
"""

from __future__ import annotations

import numpy as np

from opmix_ray.config.objective import Objective
from opmix_ray.laws.fitted import FittedLaw


class AimedLaw(FittedLaw):
    """The fitted metrics of another law under an objective that is a function of all of them.

    Args:
        law: over D domains, with M metrics in nats per token.
        aim: what is minimised, over some of the metrics.
    """

    def __init__(self, law: FittedLaw, aim: Objective) -> None:
        super().__init__(
            law.name, law.domains, law.metric_names, law.weights, law.responses, None, law.quality,
            law.std_scale, law.details, law.table, None, law.held_out, law.in_sample,
        )  # fmt: skip
        self.aim = aim
        self._columns = [law.metric_names.index(name) for name in aim.sets]

    @property
    def convex(self) -> bool:
        """Exponentials and sums of convex metrics are convex; of a package's own number nothing is known."""
        return self.aim.own is None and super().convex

    def objective(self, ratios: np.ndarray) -> np.ndarray:
        """The number that is minimised, (n, D) -> (n,), in its unit."""
        return self.aim.value(self.predict(ratios)[:, self._columns])

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        """Its derivative by the shares, (n, D) -> (n, D)."""
        ratios = self._check(ratios)
        slopes = self.aim.gradient(self.predict(ratios)[:, self._columns])
        return sum(
            (slopes[:, [k]] * self.metric_gradient(ratios, m) for k, m in enumerate(self._columns)),
            np.zeros(ratios.shape),
        )

    def objective_std(self, ratios: np.ndarray) -> np.ndarray:
        """Its standard error from those of the metrics, taken as independent, by the slopes (delta method)."""
        ratios = self._check(ratios)
        slopes = self.aim.gradient(self.predict(ratios)[:, self._columns])
        stds = np.column_stack([self.responses[m].std(ratios) for m in self._columns])
        return self.std_scale * np.sqrt(np.square(slopes * stds).sum(axis=1))


def aimed(law: FittedLaw, aim: Objective) -> FittedLaw:
    """The law under an objective; the law itself where that is the weighted mean loss."""
    return law if aim.kind == "loss" else AimedLaw(law, aim)


def kl_in_unit(law: FittedLaw, aim: Objective, kl: float, shares: np.ndarray) -> float:
    """The weight of the KL term in the objective's unit: `kl` is in nats of loss that all sets have in common.

    Args:
        law: with the metrics' predictions.
        aim: what is minimised.
        kl: nats of loss.
        shares: (D,) mixture in force.
    """
    if aim.kind == "loss":
        return kl
    at = law.predict(shares[None])[:, [law.metric_names.index(name) for name in aim.sets]]
    slope = float(aim.gradient(at).sum())
    return kl * slope if np.isfinite(slope) and slope > 0 else kl
