"""Laws that are linear in fixed features of the shares: `linear` in the shares themselves.

`Additive` is the response of both `linear` and `log-share`:
`y = a + sum_d s_d log(p_d + eps) + sum_d b_d p_d`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix_ray.laws.base import Law, Response, Table, fit_columns, register
from opmix_ray.laws.extrapolate import Extrapolation
from opmix_ray.laws.ridge import RidgeFit, fit_ridge


@register
class Additive(Response):
    """`y = intercept + slopes . log(p + eps) + linear . p`.

    Args:
        slopes, linear: (D,).
        eps: pseudo-count of the predictions.
        fitted_eps: pseudo-count the standard error was estimated with.
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
        fitted_eps: float | None = None,
    ) -> None:
        self.intercept, self.slopes, self.linear, self.eps = intercept, slopes, linear, eps
        self.mean, self.covariance, self.sigma = mean, covariance, sigma
        self.fitted_eps = eps if fitted_eps is None else fitted_eps

    @property
    def convex(self) -> bool:
        return bool((self.slopes <= 0).all())

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.intercept + np.log(np.maximum(ratios, 0) + self.eps) @ self.slopes + ratios @ self.linear

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self.slopes / (np.maximum(ratios, 0) + self.eps) + self.linear

    def std(self, ratios: np.ndarray) -> np.ndarray:
        features = np.hstack([np.log(np.maximum(ratios, 0) + self.fitted_eps), ratios])
        at = np.hstack([np.ones((len(ratios), 1)), features - self.mean])
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", at, self.covariance, at), 0))

    def extrapolate(self, extrapolation: Extrapolation, metric: str) -> Additive:
        eps = extrapolation.read_eps(self.fitted_eps)
        anchor = extrapolation.anchor_array(len(self.slopes))
        slopes = extrapolation.slope_ratio * self.slopes
        linear = extrapolation.slope_ratio * self.linear
        change = self.predict(anchor) - (np.log(anchor + eps) @ slopes + anchor @ linear)
        return Additive(
            float(change[0]), slopes, linear, eps, self.mean, self.covariance, self.sigma, self.fitted_eps
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "intercept": self.intercept,
            "slopes": self.slopes.tolist(),
            "linear": self.linear.tolist(),
            "eps": self.eps,
            "fitted_eps": self.fitted_eps,
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
            fitted_eps=data["fitted_eps"],
            sigma=data["sigma"],
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
