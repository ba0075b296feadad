"""Laws that are linear in fixed features of the shares: `linear` in the shares themselves, `ridge` in their logs.

`Additive` is the response of `linear`, `log-share` and `own-share`:
`y = a + sum_d s_d log(p_d + eps) + sum_d b_d p_d`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix_ray.laws.base import Law, Response, Table, fit_columns, register
from opmix_ray.laws.extrapolate import SLOPE_DOUBT, Extrapolation
from opmix_ray.numerics.ridge import RidgeFit, fit_ridge

RIDGE_EPS = 0.01  # pseudo-count of `ridge`


@register
class Additive(Response):
    """`y = intercept + slopes . log(p + eps) + linear . p`.

    Args:
        slopes, linear: (D,).
        eps: pseudo-count.
        mean, covariance: of the features and coefficients at the fit, shapes (2D,) and (2D + 1, 2D + 1).
        sigma: residual standard deviation.
    """

    kind = "additive"

    def __init__(
        self,
        intercept: float,
        slopes: np.ndarray,
        linear: np.ndarray,
        eps: float,
        mean: np.ndarray,
        covariance: np.ndarray,
        sigma: float,
    ) -> None:
        self.intercept, self.slopes, self.linear, self.eps = intercept, slopes, linear, eps
        self.mean, self.covariance, self.sigma = mean, covariance, sigma

    @property
    def convex(self) -> bool:
        return bool((self.slopes <= 0).all())

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.intercept + np.log(np.maximum(ratios, 0) + self.eps) @ self.slopes + ratios @ self.linear

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self.slopes / (np.maximum(ratios, 0) + self.eps) + self.linear

    def std(self, ratios: np.ndarray) -> np.ndarray:
        features = np.hstack([np.log(np.maximum(ratios, 0) + self.eps), ratios])
        at = np.hstack([np.ones((len(ratios), 1)), features - self.mean])
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", at, self.covariance, at), 0))

    def extrapolate(self, extrapolation: Extrapolation, metric: str) -> Extrapolated:
        return Extrapolated.of(self, extrapolation)

    def to_dict(self) -> dict[str, Any]:
        return {
            "intercept": self.intercept,
            "slopes": self.slopes.tolist(),
            "linear": self.linear.tolist(),
            "eps": self.eps,
            "mean": self.mean.tolist(),
            "covariance": self.covariance.tolist(),
            "sigma": self.sigma,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Additive:
        arrays = {name: np.array(data[name]) for name in ("slopes", "linear", "mean", "covariance")}
        return cls(
            intercept=data["intercept"],
            eps=data["eps"],
            sigma=data["sigma"],
            **arrays,
        )


@register
class Extrapolated(Additive):
    """An additive response read for other runs than it was fitted on.

    Args:
        origin: as it was fitted.
        intercept, slopes, linear, eps: as it is read.
        anchor: (D,) mixture whose prediction is the same in both.
        doubt: standard deviation of log(true slope / slope) between metrics.
    """

    kind = "extrapolated"

    def __init__(
        self, origin: Additive, intercept: float, slopes: np.ndarray, linear: np.ndarray, eps: float,
        anchor: np.ndarray, doubt: float,
    ) -> None:  # fmt: skip
        super().__init__(intercept, slopes, linear, eps, origin.mean, origin.covariance, origin.sigma)
        self.origin, self.anchor, self.doubt = origin, anchor, doubt

    @classmethod
    def of(cls, origin: Additive, how: Extrapolation) -> Extrapolated:
        """Read a response as `how` says."""
        eps = how.read_eps(origin.eps)
        anchor = how.anchor_array(len(origin.slopes))
        slopes, linear = how.read_slope(origin.eps) * origin.slopes, how.transfer_trust * origin.linear
        logs = np.log(anchor + eps)
        intercept = float((origin.predict(anchor) - logs @ slopes - anchor @ linear)[0])
        doubt = 0.0 if eps == origin.eps and how.growth is None else SLOPE_DOUBT
        return cls(origin, intercept, slopes, linear, eps, anchor[0], doubt)

    def std(self, ratios: np.ndarray) -> np.ndarray:
        away = np.log(np.maximum(ratios, 0) + self.eps) - np.log(self.anchor + self.eps)
        return np.sqrt(self.origin.std(ratios) ** 2 + (away**2) @ (self.doubt * self.slopes) ** 2)

    def extrapolate(self, extrapolation: Extrapolation, metric: str) -> Extrapolated:
        return Extrapolated.of(self.origin, extrapolation)

    def to_dict(self) -> dict[str, Any]:
        return {
            "origin": self.origin.to_dict(),
            "intercept": self.intercept,
            "slopes": self.slopes.tolist(),
            "linear": self.linear.tolist(),
            "eps": self.eps,
            "anchor": self.anchor.tolist(),
            "doubt": self.doubt,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Extrapolated:
        arrays = {name: np.array(data[name]) for name in ("slopes", "linear", "anchor")}
        return cls(
            Additive.from_dict(data["origin"]),
            intercept=data["intercept"],
            eps=data["eps"],
            doubt=data["doubt"],
            **arrays,
        )


def additive(fit: RidgeFit, log_columns: np.ndarray, linear_columns: np.ndarray, eps: float) -> Additive:
    """A ridge fit on `[log(p[log_columns] + eps), p[linear_columns]]` as a response over all D shares.

    Args:
        log_columns, linear_columns: (D,) booleans.
    """
    domains = len(log_columns)
    where = np.flatnonzero(np.concatenate([log_columns, linear_columns]))
    coefficients, mean = np.zeros(2 * domains), np.zeros(2 * domains)
    coefficients[where], mean[where] = fit.beta, fit.mean
    covariance = np.zeros((2 * domains + 1, 2 * domains + 1))
    index = np.concatenate([[0], where + 1])
    covariance[np.ix_(index, index)] = fit.covariance
    return Additive(
        fit.intercept, coefficients[:domains], coefficients[domains:], eps, mean, covariance, fit.sigma
    )


class Linear(Law):
    """Ridge on the shares."""

    name = "linear"

    def fit(self, table: Table) -> list[Response]:
        count = table.ratios.shape[1]

        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            fit = fit_ridge(ratios, values, weights)
            return additive(fit, np.zeros(count, bool), np.ones(count, bool), 1.0)

        return fit_columns(table, one)


class Ridge(Law):
    """Ridge on log shares with a fixed pseudo-count: nothing but one penalty a metric is chosen, by leave-one-out."""

    name = "ridge"

    def fit(self, table: Table) -> list[Response]:
        count = table.ratios.shape[1]

        def one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
            fit = fit_ridge(np.log(ratios + RIDGE_EPS), values, weights)
            return additive(fit, np.ones(count, bool), np.zeros(count, bool), RIDGE_EPS)

        return fit_columns(table, one)
