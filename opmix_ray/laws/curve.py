"""Least squares for a parametric curve: analytic Jacobian, few informed starts, a pull chosen by leave-one-out.

Noise is Student's t: rows far from the curve lose weight (iteratively reweighted least squares, Lange 1989).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from opmix_ray.laws.base import Law, Response, Table, fit_columns
from opmix_ray.numerics.ridge import DEGREES, tail_spread

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
