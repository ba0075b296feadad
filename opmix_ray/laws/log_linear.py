"""The log-linear law `L(p) = exp(c) + exp(t . p)` of OP-Mix and of data mixing laws (Ye et al. 2024).

Least squares with the analytic Jacobian from a few informed starts: for several values of the floor `exp(c)`
the rest is linear in `log(L - exp(c))`. A slight pull of `t` towards its mean keeps the fit defined where there
are fewer rows than domains; its strength is chosen by leave-one-out on the linearised law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import least_squares

from opmix_ray.laws.base import Law, Response, Table, fit_columns, register
from opmix_ray.laws.ridge import fit_ridge

PENALTIES = (1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FLOORS = (0.02, 0.3, 1.5, 10.0)  # distance of the first floor below the least value, in ranges
LIMIT = 60.0  # greatest exponent


@register
class LogLinear(Response):
    """`y = floor + exp(t . p)`.

    Args:
        floor: asymptote.
        slopes: (D,) `t`.
        covariance: (D + 1, D + 1) of (floor, t).
        sigma: residual standard deviation.
    """

    kind = "log-linear"
    convex = True

    def __init__(self, floor: float, slopes: np.ndarray, covariance: np.ndarray, sigma: float) -> None:
        self.floor, self.slopes, self.covariance, self.sigma = floor, slopes, covariance, sigma

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
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LogLinear:
        return cls(data["floor"], np.array(data["slopes"]), np.array(data["covariance"]), data["sigma"])


def _fit(
    ratios: np.ndarray, values: np.ndarray, root: np.ndarray, start: np.ndarray, penalty: float, steps: int
) -> np.ndarray:
    """Parameters (log floor, level, t centred) from one start; values have unit spread."""
    mean = ratios.mean(axis=0)
    pull = np.sqrt(penalty * len(values)) * np.eye(ratios.shape[1])
    columns = ratios - mean

    def residual(theta: np.ndarray) -> np.ndarray:
        term = np.exp(np.clip(theta[1] + columns @ theta[2:], -LIMIT, LIMIT))
        floor = np.exp(np.clip(theta[0], -LIMIT, LIMIT))
        return np.concatenate([root * (floor + term - values), pull @ theta[2:]])

    def jacobian(theta: np.ndarray) -> np.ndarray:
        term = root * np.exp(np.clip(theta[1] + columns @ theta[2:], -LIMIT, LIMIT))
        floor = root * np.exp(np.clip(theta[0], -LIMIT, LIMIT))
        top = np.column_stack([floor, term, term[:, None] * columns])
        return np.vstack([top, np.hstack([np.zeros((len(pull), 2)), pull])])

    return least_squares(residual, start, jacobian, method="lm", max_nfev=steps).x


def _leave_one_out(
    theta: np.ndarray, ratios: np.ndarray, values: np.ndarray, root: np.ndarray, penalty: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Error by leave-one-out on the linearised law, the covariance of (floor, t) over sigma^2, residuals."""
    columns = ratios - ratios.mean(axis=0)
    term = np.exp(np.clip(theta[1] + columns @ theta[2:], -LIMIT, LIMIT))
    floor = np.full_like(term, np.exp(np.clip(theta[0], -LIMIT, LIMIT)))
    jacobian = root[:, None] * np.column_stack([floor, term, term[:, None] * columns])
    normal = jacobian.T @ jacobian
    normal[np.diag_indices_from(normal)] += 1e-10 * np.trace(normal) / len(normal)
    normal[2:, 2:] += penalty * len(values) * np.eye(len(theta) - 2)
    inverse = np.linalg.inv(normal)
    leverage = np.einsum("nf,fg,ng->n", jacobian, inverse, jacobian)
    residual = root * (floor + term - values)
    loo = residual / np.maximum(1 - leverage, 1e-3)
    # t over shares that sum to 1 takes the level with it: d(level + t.(p - mean)) = level' + t'.p
    lift = np.zeros((len(theta) - 1, len(theta)))
    lift[0, 0] = floor[0]
    lift[1:, 1] = 1
    lift[1:, 2:] = np.eye(len(theta) - 2) - ratios.mean(axis=0)
    return float((loo**2).mean()), lift @ inverse @ lift.T, loo


class LogLinearLaw(Law):
    """Least squares for every metric by itself."""

    name = "log-linear"

    def __init__(self, penalties: tuple[float, ...] = PENALTIES) -> None:
        self.penalties = penalties

    def fit(self, table: Table) -> list[Response]:
        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            return fit_log_linear(ratios, values, weights, self.penalties)

        return fit_columns(table, one)


def fit_log_linear(
    ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, penalties: tuple[float, ...] = PENALTIES
) -> LogLinear:
    """Fit one metric.

    Args:
        ratios: (N, D); values, weights: (N,).
        penalties: strengths of the pull among which leave-one-out chooses.
    """
    shift = 0.0 if values.min() > 0 else float(values.min() - np.ptp(values))  # the floor is above `shift`
    scale = float(values.std())
    unit = (values - shift) / scale
    root = np.sqrt(weights)
    spread = np.ptp(unit)
    starts = []
    for floor in dict.fromkeys(max(float(unit.min() - f * spread), 1e-3 * unit.min()) for f in FLOORS):
        line = fit_ridge(ratios, np.log(unit - floor), weights)
        level = line.intercept + ratios.mean(axis=0) @ line.beta
        starts.append(np.concatenate([[np.log(floor), level], line.beta]))

    def cost(theta: np.ndarray) -> float:
        return _leave_one_out(theta, ratios, unit, root, penalties[0])[0]

    middle = penalties[len(penalties) // 2]
    fits = [_fit(ratios, unit, root, start, middle, 12) for start in starts]
    theta = min(fits, key=cost)
    path = []
    for penalty in sorted(penalties, reverse=True):
        theta = _fit(ratios, unit, root, theta, penalty, 60)
        path.append((_leave_one_out(theta, ratios, unit, root, penalty)[0], penalty, theta))
    error, penalty, theta = min(path, key=lambda item: item[0])
    _, covariance, _ = _leave_one_out(theta, ratios, unit, root, penalty)
    slopes = theta[1] + theta[2:] - theta[2:] @ ratios.mean(axis=0) + np.log(scale)
    floor = float(np.exp(np.clip(theta[0], -LIMIT, LIMIT)) * scale + shift)
    # covariance of (floor, t) in the metric's own unit; t has no unit
    units = np.concatenate([[scale], np.ones(len(slopes))])
    sigma = float(np.sqrt(error)) * scale
    return LogLinear(floor, slopes, error * covariance * np.outer(units, units), sigma)
