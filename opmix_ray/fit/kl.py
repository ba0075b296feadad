"""`--kl auto`: the weight of the KL term whose proposals lose least on runs that they have not seen.

    curve = choose_kl(law, lambda half, kl: propose(half, prior=prior, kl=kl).mixture, seed=0)
    curve.chosen, curve.regrets

The runs are divided into halves. A law of one half proposes a mixture for every weight, and a law of the other half
says what it is worth; then the other way round. Without a KL term a proposal follows the errors of its own law, with a
strong one it stays where it was: regret, measured from the best weight of each half, shows both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.numerics import one_thread

AUTO = "auto"
STEPS = (
    0.0,
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
)  # weights, in standard deviations of the objective over the runs per nat
SPLITS = 4  # of the runs into halves
LEAST = 8  # runs, else a half says nothing


@dataclass(frozen=True)
class KlCurve:
    """Regret by weight of the KL term.

    Args:
        weights: in units of the objective per nat, from 0 upwards.
        regrets: means over the halves, in units of the objective; `errors` are their standard errors.
        chosen: the weight with the least regret.
    """

    weights: list[float]
    regrets: list[float]
    errors: list[float]
    chosen: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)

    def words(self) -> str:
        """The curve in one line."""
        points = ", ".join(f"{w:.3g}: {r:.4f}" for w, r in zip(self.weights, self.regrets, strict=True))
        return f"KL weight {self.chosen:.3g} has the least regret on unseen runs ({points})"


def read_kl(given: str | float) -> float | None:
    """A weight, or None for `auto`.

    Raises:
        UserError: neither.
    """
    if given == AUTO:
        return None
    try:
        weight = float(given)
    except ValueError:
        weight = np.nan
    if not np.isfinite(weight) or weight < 0:
        raise UserError(
            "must be a number of at least 0, or `auto`",
            key="--kl",
            value=given,
            remedy="the usual value is 0.05",
        )
    return weight


@one_thread()
def choose_kl(
    law: FittedLaw,
    proposed: Callable[[FittedLaw, float], Mixture],
    *,
    seed: int = 0,
    step: Callable[[int, int], None] | None = None,
) -> KlCurve:
    """The weight with the least cross-validated regret.

    Args:
        law: with its rows.
        proposed: the mixture that a law proposes with a weight.
        seed: of the halves.
        step: told how many proposals are made, and of how many.

    Raises:
        UserError: fewer than 8 runs.
    """
    assert law.table is not None, "a law that was just fitted has its rows"
    rows = len(law.table)
    if rows < LEAST:
        raise UserError(
            f"cannot be chosen by {rows} runs: halves of fewer than {LEAST // 2} tell nothing",
            key="--kl", value=AUTO, remedy="give a number such as 0.05",
        )  # fmt: skip
    used = law.weights > 0
    sized = law.details.get("target") is not None  # runs of other sizes are at other levels
    values = law.objective(law.table.ratios) if sized else law.table.metrics[:, used] @ law.weights[used]
    spread = float(np.nanstd(values)) or 1.0
    weights = [spread * size for size in STEPS]
    rng = np.random.default_rng([seed, 2])
    regrets = []
    for split in range(SPLITS):
        first = np.isin(np.arange(rows), rng.permutation(rows)[: rows // 2])
        halves = [law.on_rows(first), law.on_rows(~first)]
        for place, half in enumerate(halves):
            worth: list[float] = []
            for weight in weights:
                if step is not None:
                    step((2 * split + place) * len(weights) + len(worth), 2 * SPLITS * len(weights))
                worth.append(float(halves[1 - place].objective(proposed(half, weight).array(law.domains))[0]))
            regrets.append(np.array(worth) - min(worth))
    if step is not None:
        step(2 * SPLITS * len(weights), 2 * SPLITS * len(weights))
    mean = np.mean(regrets, axis=0)
    errors = np.std(regrets, axis=0, ddof=1) / np.sqrt(len(regrets))
    return KlCurve(weights, mean.tolist(), errors.tolist(), weights[int(np.argmin(mean))])
