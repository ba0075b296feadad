"""The choice of least expected regret between mixtures, under a law that says how sure it is.

The regret of a mixture is how much more it loses than the best one would; what the best one loses is the same for all,
so the mixture with the least expected loss has the least expected regret. The mixture in force is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from opmix_ray.laws.fitted import FittedLaw
from opmix_ray.mixture import Mixture

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
    """

    CURRENT: ClassVar[str] = "mixture in force"

    name: str
    gain: float
    low: float
    high: float
    expected: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def choose(law: FittedLaw, others: Mapping[str, Mixture], current: Mixture) -> Choice:
    """Choose between the mixture in force and others.

    Args:
        law: over the mixtures' domains; its standard errors are of differences from the mixture in force.
        others: by name.
        current: mixture in force.
    """
    mixtures = {**others, Choice.CURRENT: current}
    shares = np.array([mixture.array(law.domains) for mixture in mixtures.values()])
    losses = law.objective(shares)
    expected = dict(zip(mixtures, losses.tolist(), strict=True))
    stds = dict(zip(mixtures, law.objective_std(shares).tolist(), strict=True))
    name = min(expected, key=lambda each: expected[each])
    gain = expected[Choice.CURRENT] - expected[name]
    if gain < WORTH:
        return Choice(
            Choice.CURRENT,
            0.0,
            0.0,
            0.0,
            expected,
            "no mixture is expected to end lower than the one in force",
        )
    low, high = gain - Z * stds[name], gain + Z * stds[name]
    rivals = {
        n: v for n, v in expected.items() if n not in (name, Choice.CURRENT) and not n.startswith("half")
    }
    beside = ""
    if rivals:
        second = min(rivals, key=lambda each: rivals[each])
        beside = f"; with {_the(second)} {rivals[second] - expected[name]:+.4f}"
    return Choice(
        name, gain, low, high, expected,
        f"the objective is expected to end {gain:.4f} nats per token lower with {_the(name)} than with the mixture in "
        f"force, 95 % interval {low:+.4f} to {high:+.4f}{beside}",
    )  # fmt: skip


def _the(name: str) -> str:
    return name if name.startswith("half") else f"the {name}" if name == "proposal" else f"the {name} mixture"
