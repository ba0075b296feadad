"""A fitted law against the candidates it was fitted on.

A law that is read for models that are really trained (`opmix_ray.laws.Extrapolation`) predicts another level than
simulated candidates have; here it is taken as it was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from opmix_ray.decision.old_part import OLD
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.laws.linear import Extrapolated
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.trials.rows import usable_losses


@dataclass
class LawCheck:
    """Observed and predicted losses, nats per token.

    Args:
        runs: candidates the law was fitted on, N.
        sets: M evaluation sets.
        observed, predicted: (N, M); the law as it was fitted.
        checked: set -> (observed, predicted) of the simulated proposal, which the fit has not seen.
        eps: pseudo-count as fitted and as read; None where the law has none or both are the same.
        steeper: slopes as read over those fitted, geometric mean over the sets; None likewise.
    """

    runs: list[str]
    sets: list[str]
    observed: np.ndarray
    predicted: np.ndarray
    checked: dict[str, tuple[float, float]] = field(default_factory=dict)
    eps: tuple[float, float] | None = None
    steeper: float | None = None


def check_law(files: DecisionFiles) -> LawCheck | None:
    """Predictions for every usable candidate; None where there is no law or the files do not fit together."""
    law = files.law
    if law is None:
        return None
    rows = [row for row in files.rows if row.usable and math.isfinite(row.objective)]
    sets = [name for name in law.metric_names if all(name in row.losses for row in rows)]
    if not rows or not sets:
        return None
    try:
        fitted = _as_fitted(law)
        columns = [law.metric_names.index(name) for name in sets]
        observed = usable_losses(rows, sets)
        predicted = fitted.predict(np.array([shares_of(row.ratios, law) for row in rows]))[:, columns]
        check = LawCheck([row.run for row in rows], sets, observed, predicted, {}, _eps(law), _steeper(law))
        if files.checked is not None and files.checked.losses:
            at = fitted.predict(np.array([shares_of(files.checked.ratios, law)]))[0, columns]
            losses = files.checked.losses
            check.checked = {
                name: (losses.get(name, math.nan), float(value)) for name, value in zip(sets, at, strict=True)
            }
    except (UserError, ValueError, TypeError, LookupError):
        return None
    return check


def shares_of(ratios: Mapping[str, float], law: FittedLaw) -> list[float]:
    """Shares of the law's domains; `old` is all that is not one of the others."""
    rest = 1 - sum(ratios.get(name, 0.0) for name in law.domains)
    return [rest if name == OLD else ratios.get(name, 0.0) for name in law.domains]


def _eps(law: FittedLaw) -> tuple[float, float] | None:
    for response in law.responses:
        if isinstance(response, Extrapolated) and response.origin.eps != response.eps:
            return float(response.origin.eps), float(response.eps)
    return None


def _steeper(law: FittedLaw) -> float | None:
    ratios = [
        r.slopes.min() / r.origin.slopes.min()
        for r in law.responses
        if isinstance(r, Extrapolated) and r.slopes.min() < 0 and r.origin.slopes.min() < 0
    ]
    return float(np.exp(np.log(ratios).mean())) if ratios else None


def _as_fitted(law: FittedLaw) -> FittedLaw:
    """The law as it was fitted."""
    responses = [r.origin if isinstance(r, Extrapolated) else r for r in law.responses]
    return FittedLaw(law.name, law.domains, law.metric_names, law.weights, responses)
