"""Least squares for a parametric curve, with analytic Jacobian, few informed starts and a pull chosen by leave-one-out.

Noise is Student's t: rows far from the curve lose weight (iteratively reweighted least squares, Lange 1989).

The log-linear law is such a curve: `L(p) = exp(c) + exp(t . p)`, of OP-Mix and of data mixing laws (Ye et al. 2024).
Its starts: for several values of the floor `exp(c)`, `log(L - exp(c))` is linear in the shares. A slight pull of `t`
towards its mean keeps the fit defined where there are fewer rows than domains.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from opmix_ray.laws.base import Law, Response, Table, fit_columns, register
from opmix_ray.numerics.ridge import DEGREES, first_spread, fit_ridge, tail_spread

FIRST_STEPS = 15  # of every start
STEPS = (12, 12, 40)  # of every round of reweighting

Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pulls:
    """Quadratic terms beside the data: `penalty * n * |loose theta|^2 + |firm (theta - target)|^2`.

    Args:
        loose: (R, K), its strength is chosen by leave-one-out.
        firm: (F, K) and target (K,): a fixed prior in units of the values' variance.
    """

    loose: np.ndarray
    firm: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class CurveFit:
    """Parameters (K,), the covariance (K, K) of their errors, residual standard deviation, the penalty chosen."""

    theta: np.ndarray
    covariance: np.ndarray
    sigma: float
    penalty: float


class CurveLaw(Law):
    """A law that fits one curve to every metric by itself."""

    @abstractmethod
    def fit_one(
        self, ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, near: Response | None
    ) -> Response:
        """Fit one metric; `near` is a fit to start from and whose penalty to keep."""

    def fit(self, table: Table) -> list[Response]:
        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            return self.fit_one(ratios, values, weights, None)

        return fit_columns(table, one)

    def refit(self, table: Table, fitted: Sequence[Response]) -> list[Response]:
        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            return self.fit_one(ratios, values, weights, fitted[metric])

        return fit_columns(table, one)


def _minimise(
    curve: Curve,
    pulls: Pulls,
    values: np.ndarray,
    root: np.ndarray,
    start: np.ndarray,
    penalty: float,
    steps: int,
) -> tuple[np.ndarray, float]:
    loose = np.sqrt(penalty * len(values)) * pulls.loose
    curve = _remember(curve)

    def residual(theta: np.ndarray) -> np.ndarray:
        away = pulls.firm @ (theta - pulls.target)
        return np.concatenate([root * (curve(theta)[0] - values), loose @ theta, away])

    def jacobian(theta: np.ndarray) -> np.ndarray:
        return np.vstack([root[:, None] * curve(theta)[1], loose, pulls.firm])

    answer = least_squares(residual, start, jacobian, method="lm", max_nfev=steps, ftol=1e-7, xtol=1e-7)
    return answer.x, float(answer.cost)


def _remember(curve: Curve) -> Curve:
    """The curve with its last value kept: least squares asks for value and Jacobian in turn."""
    last: list[tuple[bytes, tuple[np.ndarray, np.ndarray]]] = []

    def remembered(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = theta.tobytes()
        if not last or last[0][0] != key:
            last[:] = [(key, curve(theta))]
        return last[0][1]

    return remembered


def _leave_one_out(
    curve: Curve, pulls: Pulls, values: np.ndarray, root: np.ndarray, theta: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out residuals (n,) of the linearised curve, unweighted, and the inverse normal matrix (K, K)."""
    predicted, slope = curve(theta)
    slope = root[:, None] * slope
    normal = slope.T @ slope + penalty * len(values) * pulls.loose.T @ pulls.loose + pulls.firm.T @ pulls.firm
    normal[np.diag_indices_from(normal)] += 1e-10 * np.trace(normal) / len(normal) + 1e-300
    inverse = np.linalg.inv(normal)
    leverage = np.einsum("nf,fg,ng->n", slope, inverse, slope)
    return (predicted - values) / np.maximum(1 - leverage, 1e-6), inverse


def fit_curve(
    curve: Curve,
    pulls: Pulls,
    values: np.ndarray,
    weights: np.ndarray,
    starts: Sequence[np.ndarray],
    penalties: Sequence[float],
    noise: np.ndarray,
) -> CurveFit:
    """The curve with the penalty that has the least leave-one-out error.

    Args:
        curve: theta (K,) -> predictions (n,) and their derivatives (n, K).
        values: (n,) in units of their spread; weights: (n,), mean about 1.
        starts: parameters to start from; the best one is followed from penalty to penalty.
        penalties: in increasing order.
        noise: (n,) first guess of the variance of every row's noise, see `tails.first_spread`.
    """
    root = np.sqrt(weights)
    first = 1 / np.sqrt(noise)
    path: list[tuple[float, float, np.ndarray, np.ndarray]] = []
    for begin, places in _walks(len(penalties)):
        tried = [
            _minimise(curve, pulls, values, root * first, start, penalties[begin], FIRST_STEPS)
            for start in starts
        ]
        theta, tail = min(tried, key=lambda found: found[1])[0], first
        for place in places:
            theta, tail = _reweighted(curve, pulls, values, root, theta, tail, penalties[place])
            loo, _ = _leave_one_out(curve, pulls, values, root * tail, theta, penalties[place])
            path.append((_size(loo, root), penalties[place], theta, tail))
    _, penalty, theta, tail = min(path, key=lambda item: item[0])
    loo, inverse = _leave_one_out(curve, pulls, values, root * tail, theta, penalty)
    sigma2 = float((root**2 * tail**2 * loo**2).mean())
    return CurveFit(theta, sigma2 * inverse, float(np.sqrt(sigma2)), penalty)


def _walks(count: int) -> list[tuple[int, list[int]]]:
    """Where to start among the penalties and which to visit from there: up from the least, down from the middle.

    A strong pull and a weak one lead into different valleys; leave-one-out chooses between them.
    """
    middle = count // 2
    if count == 1:
        return [(0, [0])]
    return [(0, list(range(count))), (middle, list(range(middle, -1, -1)))]


def _size(residual: np.ndarray, root: np.ndarray) -> float:
    """Residuals under heavy tails: minus twice the mean log density of Student's t with the best scale."""
    square = (root * residual) ** 2
    scale = max(float(np.median(square)), 1e-300)
    for _ in range(20):
        scale = max(float((square / tail_spread(square / scale)).mean()), 1e-300)
    return float(np.log(scale) + (DEGREES + 1) * np.log1p(square / scale / DEGREES).mean())


def _reweighted(
    curve: Curve,
    pulls: Pulls,
    values: np.ndarray,
    root: np.ndarray,
    theta: np.ndarray,
    tail: np.ndarray,
    penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters under heavy-tailed noise, and the root (n,) of the weights that it leaves the rows."""
    for steps in STEPS:
        theta, _ = _minimise(curve, pulls, values, root * tail, theta, penalty, steps)
        square = (root * (curve(theta)[0] - values)) ** 2
        scale = max(float((tail**2 * square).mean()), 1e-300)
        tail = 1 / np.sqrt(tail_spread(square / scale))
    return theta, tail


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
