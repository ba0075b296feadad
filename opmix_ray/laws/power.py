"""A power law in effective tokens: `L(p) = floor + (a . p)^-beta`.

`a_d > 0` is what a token of domain d is worth to the metric: the loss falls as a power of the effective share
`a . p`, as it does of tokens in scaling laws (Hoffmann et al. 2022; Hernandez et al. 2021 for transfer between
domains). Convex on the simplex; its limit for large `beta` is the log-linear law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from opmix_ray.laws.base import Response, register
from opmix_ray.laws.curves import CurveLaw, Pulls, fit_curve, floors, lowest_floor
from opmix_ray.numerics.ridge import first_spread

PENALTIES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FLOORS = (0.02, 0.3, 1.0)
BETAS = (0.1, 0.3, 1.0)  # to start from
USUAL_BETA = 0.3  # of scaling laws in tokens; a prior of weight FIRMNESS holds on to its log
FIRMNESS = 0.5
LIMIT = 40.0


@register
class Power(Response):
    """`y = floor + (a . p)^-beta`.

    Args:
        floor: asymptote.
        worth: (D,) log of `a`.
        beta: exponent.
        covariance: (D + 2, D + 2) of (floor, log beta, log a).
        sigma: residual standard deviation.
        penalty: of the fit.
    """

    kind = "power"
    convex = True

    def __init__(
        self,
        floor: float,
        worth: np.ndarray,
        beta: float,
        covariance: np.ndarray,
        sigma: float,
        penalty: float,
    ) -> None:
        self.floor, self.worth, self.beta = floor, worth, beta
        self.covariance, self.sigma, self.penalty = covariance, sigma, penalty

    def _effective(self, ratios: np.ndarray) -> np.ndarray:
        return np.maximum(np.maximum(ratios, 0) @ np.exp(self.worth), np.exp(self.worth.min() - LIMIT))

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.floor + self._effective(ratios) ** -self.beta

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        effective = self._effective(ratios)
        return -self.beta * (effective ** (-self.beta - 1))[:, None] * np.exp(self.worth)

    def std(self, ratios: np.ndarray) -> np.ndarray:
        effective = self._effective(ratios)
        term = effective**-self.beta
        by_worth = self.gradient(ratios) * np.maximum(ratios, 0)
        at = np.column_stack([np.ones(len(ratios)), -self.beta * np.log(effective) * term, by_worth])
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", at, self.covariance, at), 0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "floor": self.floor,
            "worth": self.worth.tolist(),
            "beta": self.beta,
            "covariance": self.covariance.tolist(),
            "sigma": self.sigma,
            "penalty": self.penalty,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Power:
        worth, covariance = np.array(data["worth"]), np.array(data["covariance"])
        return cls(data["floor"], worth, data["beta"], covariance, data["sigma"], data["penalty"])


class PowerLaw(CurveLaw):
    """Least squares for every metric by itself."""

    name = "power"

    def fit_one(
        self, ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, near: Response | None
    ) -> Response:
        return fit_power(ratios, values, weights, near=near)


def fit_power(
    ratios: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    near: Response | None = None,
) -> Power:
    """Fit one metric.

    Args:
        ratios: (N, D); values, weights: (N,).
        penalties: strengths of the pull of `log a` to its mean, among which leave-one-out chooses.
        near: start from this fit alone and keep its penalty.
    """
    shift, scale = lowest_floor(values), float(values.std())
    unit = (values - shift) / scale
    noise = first_spread(ratios, unit, weights)
    trust = weights / noise
    domains = ratios.shape[1]

    def curve(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (log floor, log beta, log a)
        beta = np.exp(np.clip(theta[1], -6, 3))
        worth = np.exp(np.clip(theta[2:], -LIMIT, LIMIT))
        effective = ratios @ worth
        term = np.exp(np.minimum(-beta * np.log(effective), LIMIT))
        floor = np.full_like(term, np.exp(np.clip(theta[0], -LIMIT, LIMIT)))
        by_worth = (-beta * term / effective)[:, None] * ratios * worth
        return floor + term, np.column_stack([floor, -beta * np.log(effective) * term, by_worth])

    width = domains + 2
    loose = np.zeros((domains, width))
    loose[:, 2:] = np.eye(domains) - 1 / domains
    firm, target = np.zeros((1, width)), np.zeros(width)
    firm[0, 1], target[1] = np.sqrt(FIRMNESS), np.log(USUAL_BETA)
    if isinstance(near, Power):
        floor = max((near.floor - shift) / scale, 1e-12)
        worth = near.worth + np.log(scale) / near.beta
        starts = [np.concatenate([[np.log(floor), np.log(near.beta)], worth])]
        penalties = (near.penalty,)
    else:
        starts = [
            np.concatenate([[np.log(floor), np.log(beta)], _worth(ratios, unit - floor, trust, beta)])
            for floor in floors(unit, FLOORS)
            for beta in BETAS
        ]
    fit = fit_curve(curve, Pulls(loose, firm, target), unit, weights, starts, penalties, noise)
    beta = float(np.exp(np.clip(fit.theta[1], -6, 3)))
    floor = float(np.exp(np.clip(fit.theta[0], -LIMIT, LIMIT))) * scale
    lift = np.ones(width)
    lift[0] = floor
    # scale * (a . p)^-beta = (scale^(-1/beta) a . p)^-beta; the change of its log a with log beta
    shifted = np.log(scale) / beta
    turn = np.diag(lift)
    turn[2:, 1] = shifted
    covariance = turn @ fit.covariance @ turn.T
    worth = np.clip(fit.theta[2:], -LIMIT, LIMIT) - shifted
    return Power(floor + shift, worth, beta, covariance, fit.sigma * scale, fit.penalty)


def _worth(ratios: np.ndarray, above: np.ndarray, weights: np.ndarray, beta: float) -> np.ndarray:
    """`log a` from `above^(-1/beta) = a . p` by non-negative least squares, weighted back to units of the loss."""
    effective = np.exp(-np.log(above) / beta)
    back = np.sqrt(weights) * above / effective
    worth, _ = nnls(ratios * back[:, None], effective * back)
    return np.log(np.maximum(worth, 1e-3 * worth.max() + 1e-300))
