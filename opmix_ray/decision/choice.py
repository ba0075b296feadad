"""A law that minimises what is asked for, and the choice of least expected regret between mixtures under it.

law = aimed(law, config.objective_of(bytes_per_token))
law.objective(ratios), law.gradient(ratios), law.objective_std(ratios)       # in objective.unit

The regret of a mixture is how much more it loses than the best one would; what the best one loses is the same for all,
so the mixture with the least expected loss has the least expected regret. The mixture in force is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from opmix_ray.config.objective import UNITS, Objective
from opmix_ray.counts.ceilings import Ceiling, in_words, missed, told
from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture


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
        return self.aim.value(self.at(ratios)[:, self._columns])

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        """Its derivative by the shares, (n, D) -> (n, D)."""
        ratios = self._check(ratios)
        slopes = self.aim.gradient(self.at(ratios)[:, self._columns])
        return sum(
            (slopes[:, [k]] * self.metric_gradient(ratios, m) for k, m in enumerate(self._columns)),
            np.zeros(ratios.shape),
        )

    def objective_std(self, ratios: np.ndarray) -> np.ndarray:
        """Its standard error from those of the metrics, taken as independent, by the slopes (delta method)."""
        ratios = self._check(ratios)
        slopes = self.aim.gradient(self.at(ratios)[:, self._columns])
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


Z = 1.96  # of a 95 % interval
WORTH = 1e-5  # nats per token below which nothing is changed


@dataclass(frozen=True)
class Choice:
    """Which mixture, and what is expected of it.

    Args:
        name: of the mixture.
        gain: by how much the objective ends lower than with the mixture in force.
        low, high: of its 95 % interval.
        expected: objective at the end by name of the mixture.
        reason: in words.
        limits: of the mixture, by set: `ceiling`, `predicted`, `at_95`, and whether it is `kept` and `binds`.
    """

    CURRENT: ClassVar[str] = "mixture in force"

    name: str
    gain: float
    low: float
    high: float
    expected: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def choose(
    law: FittedLaw,
    others: Mapping[str, Mixture],
    current: Mixture,
    unit: str = UNITS["loss"],
    ceilings: Mapping[str, Ceiling] | None = None,
) -> Choice:
    """Choose between the mixture in force and others.

    Args:
        law: over the mixtures' domains; its standard errors are of differences from the mixture in force.
        others: by name.
        current: mixture in force.
        unit: of the law's objective.
        ceilings: by evaluation set; only mixtures that keep all with the greatest confidence that one has are taken,
            and where none is expected to, what comes nearest to them.
    """
    mixtures = {**others, Choice.CURRENT: current}
    shares = np.array([mixture.array(law.domains) for mixture in mixtures.values()])
    losses = law.objective(shares)
    expected = dict(zip(mixtures, losses.tolist(), strict=True))
    stds = dict(zip(mixtures, law.objective_std(shares).tolist(), strict=True))
    limits = {n: told(law, ceilings or {}, row) for n, row in zip(mixtures, shares, strict=True)}
    lacking = {n: missed(found) for n, found in limits.items()}
    able = [n for n, one in lacking.items() if one <= min(lacking.values())]
    name = min(able, key=lambda each: expected[each])
    gain = expected[Choice.CURRENT] - expected[name]
    if gain < WORTH and Choice.CURRENT in able:
        words = in_words(limits[Choice.CURRENT])
        return Choice(
            Choice.CURRENT, 0.0, 0.0, 0.0, expected,
            "no mixture is expected to end lower than the one in force" + (words and f"; {words}"),
            limits[Choice.CURRENT],
        )  # fmt: skip
    low, high = gain - Z * stds[name], gain + Z * stds[name]
    rivals = {n: expected[n] for n in able if n not in (name, Choice.CURRENT) and not n.startswith("half")}
    beside = ""
    if rivals:
        second = min(rivals, key=lambda each: rivals[each])
        beside = f"; with {_the(second)} it would end {rivals[second] - expected[name]:.4f} higher"
    words = in_words(limits[name])
    way = "lower" if gain >= 0 else "higher"
    return Choice(
        name, gain, low, high, expected,
        f"the objective is expected to end {abs(gain):.4f} {unit} {way} with {_the(name)} than with the mixture in "
        f"force, 95 % interval {low:+.4f} to {high:+.4f}{beside}" + (words and f"; {words}"),
        limits[name],
    )  # fmt: skip


def _the(name: str) -> str:
    return name if name.startswith("half") else f"the {name}" if name == "proposal" else f"the {name} mixture"
