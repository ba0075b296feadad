"""The log-linear law `L(p) = exp(c) + exp(t . p)` of OP-Mix and of data mixing laws (Ye et al. 2024).

Starts: for several values of the floor `exp(c)`, `log(L - exp(c))` is linear in the shares. A slight pull of `t`
towards its mean keeps the fit defined where there are fewer rows than domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opmix_ray.laws.base import Response, register
from opmix_ray.laws.curve import CurveLaw, Pulls, fit_curve
from opmix_ray.numerics.ridge import first_spread, fit_ridge

PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FLOORS = (0.02, 0.3, 1.5, 10.0)  # distance of a start's floor below the least value, in ranges
LIMIT = 60.0  # greatest exponent


@register
class LogLinear(Response):
    """`y = floor + exp(t . p)`.

    Args:
        floor: asymptote.
        slopes: (D,) `t`.
        covariance: (D + 1, D + 1) of (floor, t).
        sigma: residual standard deviation.
        penalty: of the fit.
    """

    kind = "log-linear"
    convex = True

    def __init__(
        self, floor: float, slopes: np.ndarray, covariance: np.ndarray, sigma: float, penalty: float
    ) -> None:
        self.floor, self.slopes, self.covariance, self.sigma = floor, slopes, covariance, sigma
        self.penalty = penalty

    def _term(self, ratios: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(ratios @ self.slopes, LIMIT))

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.floor + self._term(ratios)

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self._term(ratios)[:, None] * self.slopes

    def std(self, ratios: np.ndarray) -> np.ndarray:
        at = np.hstack([np.ones((len(ratios), 1)), self._term(ratios)[:, None] * ratios])
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", at, self.covariance, at), 0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "floor": self.floor,
            "slopes": self.slopes.tolist(),
            "covariance": self.covariance.tolist(),
            "sigma": self.sigma,
            "penalty": self.penalty,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LogLinear:
        slopes, covariance = np.array(data["slopes"]), np.array(data["covariance"])
        return cls(data["floor"], slopes, covariance, data["sigma"], data["penalty"])


class LogLinearLaw(CurveLaw):
    """Least squares for every metric by itself."""

    name = "log-linear"

    def fit_one(
        self, ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, near: Response | None
    ) -> Response:
        return fit_log_linear(ratios, values, weights, near=near)


def lowest_floor(values: np.ndarray) -> float:
    """What a floor `exp(c)` is counted from: 0 for positive values, else one range below the least."""
    return 0.0 if values.min() > 0 else float(values.min() - np.ptp(values))


def floors(values: np.ndarray, distances: Sequence[float] = FLOORS) -> list[float]:
    """Floors to start from, positive, for positive values."""
    least, spread = float(values.min()), float(np.ptp(values))
    return list(dict.fromkeys(max(least - distance * spread, 1e-3 * least) for distance in distances))


def fit_log_linear(
    ratios: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    near: Response | None = None,
) -> LogLinear:
    """Fit one metric.

    Args:
        ratios: (N, D); values, weights: (N,).
        penalties: strengths of the pull among which leave-one-out chooses.
        near: start from this fit alone and keep its penalty.
    """
    shift, scale = lowest_floor(values), float(values.std())
    unit = (values - shift) / scale
    noise = first_spread(ratios, unit, weights)
    trust = weights / noise
    domains = ratios.shape[1]
    mean = ratios.mean(axis=0)
    columns = ratios - mean

    def curve(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (log floor, level, t centred)
        term = np.exp(np.clip(theta[1] + columns @ theta[2:], -LIMIT, LIMIT))
        floor = np.full_like(term, np.exp(np.clip(theta[0], -LIMIT, LIMIT)))
        return floor + term, np.column_stack([floor, term, term[:, None] * columns])

    starts = []
    if isinstance(near, LogLinear):
        level = mean @ near.slopes - np.log(scale)
        floor = max((near.floor - shift) / scale, 1e-12)
        starts = [np.concatenate([[np.log(floor), level], near.slopes - near.slopes.mean()])]
        penalties = (near.penalty,)
    for floor in [] if starts else floors(unit):
        above = unit - floor
        line = fit_ridge(ratios, np.log(above), trust * above**2 / (trust * above**2).mean())
        starts.append(np.concatenate([[np.log(floor), line.intercept + mean @ line.beta], line.beta]))
    width = domains + 2
    pulls = Pulls(np.eye(width)[2:], np.zeros((0, width)), np.zeros(width))
    fit = fit_curve(curve, pulls, unit, weights, starts, penalties, noise)
    theta = fit.theta
    floor = float(np.exp(np.clip(theta[0], -LIMIT, LIMIT)))
    slopes = theta[1] + theta[2:] - theta[2:] @ mean + np.log(scale)
    # t over shares that sum to 1 takes the level with it: d(level + t.(p - mean)) = level' + t'.p
    lift = np.zeros((domains + 1, width))
    lift[0, 0] = floor * scale
    lift[1:, 1] = 1
    lift[1:, 2:] = np.eye(domains) - mean
    covariance = lift @ fit.covariance @ lift.T
    return LogLinear(floor * scale + shift, slopes, covariance, fit.sigma * scale, fit.penalty)
