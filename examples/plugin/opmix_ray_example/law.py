"""A mixing law: `loss(p) = a + b . p + c * sum_d p_d log p_d`. Used with `proposal: {law: entropy}`."""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix_ray.laws import Law, Response, Table, fit_columns, register

SMALL = 1e-6  # added to shares inside logarithms


@register
class EntropyResponse(Response):
    """One fitted metric."""

    kind = "entropy"

    def __init__(self, intercept: float, slopes: list[float], curve: float, sigma: float) -> None:
        self.intercept, self.slopes, self.curve, self.sigma = intercept, np.array(slopes), curve, sigma

    @property
    def convex(self) -> bool:
        return self.curve >= 0  # p log p is convex

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self.intercept + ratios @ self.slopes + self.curve * negative_entropy(ratios)

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self.slopes + self.curve * (np.log(ratios + SMALL) + ratios / (ratios + SMALL))

    def std(self, ratios: np.ndarray) -> np.ndarray:
        return np.full(len(ratios), self.sigma)

    def to_dict(self) -> dict[str, Any]:
        slopes = self.slopes.tolist()
        return {"intercept": self.intercept, "slopes": slopes, "curve": self.curve, "sigma": self.sigma}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EntropyResponse:
        return cls(data["intercept"], data["slopes"], data["curve"], data["sigma"])


class EntropyLaw(Law):
    """Weighted least squares for every metric."""

    name = "entropy"

    def fit(self, table: Table) -> list[Response]:
        return fit_columns(table, _fit_one)


def negative_entropy(ratios: np.ndarray) -> np.ndarray:
    """Sum of p log p, (n, D) -> (n,)."""
    return (ratios * np.log(ratios + SMALL)).sum(axis=1)


def _fit_one(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray, metric: int) -> Response:
    # Shares sum to 1, so the intercept is the last domain's slope.
    features = np.column_stack([np.ones(len(ratios)), ratios[:, :-1], negative_entropy(ratios)])
    root = np.sqrt(weights)
    found = np.linalg.lstsq(features * root[:, None], values * root, rcond=None)[0]
    sigma = float(np.std(values - features @ found))
    return EntropyResponse(float(found[0]), [*found[1:-1].tolist(), 0.0], float(found[-1]), sigma)
