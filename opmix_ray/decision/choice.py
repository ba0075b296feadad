"""The choice of least expected regret between mixtures, under a law that says how sure it is.

The regret of a mixture is how much more it loses than the best one would; what the best one loses is the same for all,
so the mixture with the least expected loss has the least expected regret. The mixture in force is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from opmix_ray.config.objective import UNITS
from opmix_ray.counts.ceilings import Ceiling, excess, in_words, told
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
        ceilings: by evaluation set; of mixtures that miss one only what comes nearest is taken, and only where none
            keeps all.
    """
    mixtures = {**others, Choice.CURRENT: current}
    shares = np.array([mixture.array(law.domains) for mixture in mixtures.values()])
    losses = law.objective(shares)
    expected = dict(zip(mixtures, losses.tolist(), strict=True))
    stds = dict(zip(mixtures, law.objective_std(shares).tolist(), strict=True))
    limits = {n: told(law, ceilings or {}, row) for n, row in zip(mixtures, shares, strict=True)}
    missed = {n: excess(found) for n, found in limits.items()}
    able = [n for n, more in missed.items() if more <= min(missed.values())]
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
