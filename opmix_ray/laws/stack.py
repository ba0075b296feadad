"""A weighted mean of several laws' responses, the weights that cross-validation gives them, and a correction of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from opmix_ray.laws.base import Response, dump_response, load_response, register
from opmix_ray.numerics.ridge import MAD, tail_spread

EVEN = 14.0  # rows at which the pull to equal weights is as strong as the best law's squared error
LEAST = 0.02  # smaller weights are dropped
ROUNDS = 10


@register
class Stack(Response):
    """`y = sum_k weight_k part_k(p)`.

    Args:
        parts: K responses of the same metric.
        weights: (K,), sum to 1.
    """

    kind = "stack"

    def __init__(self, parts: Sequence[Response], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.weights = [float(weight) for weight in weights]

    @property
    def convex(self) -> bool:
        return all(part.convex for part in self.parts)

    @property
    def smooth(self) -> bool:
        return all(part.smooth for part in self.parts)

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        return self._mean([part.predict(ratios) for part in self.parts])

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self._mean([part.gradient(ratios) for part in self.parts])

    def std(self, ratios: np.ndarray) -> np.ndarray:
        predicted = np.array([part.predict(ratios) for part in self.parts])
        return stacked_std(predicted, np.array([part.std(ratios) for part in self.parts]), self.weights)

    def _mean(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(np.array(self.weights), np.array(values), axes=1)

    def to_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "parts": [dump_response(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Stack:
        return cls([load_response(part) for part in data["parts"]], data["weights"])


@register
class Corrected(Response):
    """`y = intercept + slope part(p) + slopes . log(p + eps)`: a response corrected by runs of another size.

    Args:
        part: the response.
        intercept, slope, slopes: numbers, and an array (D,).
        eps: pseudo-count.
        mean, covariance: (D + 1,) and (D + 1, D + 1) of `[part(p), log(p + eps)]` and its coefficients.
        sigma: standard deviation of a new run.
    """

    kind = "corrected"
    convex = False

    def __init__(
        self, part: Response, intercept: float, slope: float, slopes: np.ndarray, eps: float, mean: np.ndarray,
        covariance: np.ndarray, sigma: float,
    ) -> None:  # fmt: skip
        self.part, self.intercept, self.slope, self.slopes, self.eps = part, intercept, slope, slopes, eps
        self.mean, self.covariance, self.sigma = mean, covariance, sigma
        self.parts = [part]

    @property
    def smooth(self) -> bool:
        return self.part.smooth

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(ratios, 0) + self.eps)
        return self.intercept + self.slope * self.part.predict(ratios) + logs @ self.slopes

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        return self.slope * self.part.gradient(ratios) + self.slopes / (np.maximum(ratios, 0) + self.eps)

    def std(self, ratios: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(ratios, 0) + self.eps)
        away = np.column_stack([self.part.predict(ratios), logs]) - self.mean
        return np.sqrt(self.sigma**2 + np.maximum(np.einsum("nf,fg,ng->n", away, self.covariance, away), 0))

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("slopes", "mean", "covariance")}
        numbers = {name: getattr(self, name) for name in ("intercept", "slope", "eps", "sigma")}
        return {"part": dump_response(self.part), **numbers, **arrays}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Corrected:
        arrays: dict[str, Any] = {name: np.array(data[name]) for name in ("slopes", "mean", "covariance")}
        numbers: dict[str, Any] = {name: float(data[name]) for name in ("intercept", "slope", "eps", "sigma")}
        return cls(load_response(data["part"]), **numbers, **arrays)


def stacked_std(predicted: np.ndarray, stds: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Standard error of a stack: its parts' mean error and their disagreement, (K, ...) twice -> (...).

    Parts err together, so their errors are not divided by their number.
    """
    share = np.asarray(weights)
    mean = np.tensordot(share, predicted, axes=1)
    apart = np.tensordot(share, (predicted - mean) ** 2, axes=1)
    return np.sqrt(np.tensordot(share, stds, axes=1) ** 2 + apart)


def stack_weights(held_out: np.ndarray, measured: np.ndarray, rows: int) -> np.ndarray:
    """Weights (K,) of the stack with the least error out of fold: at least 0, sum 1, small ones dropped.

    Least squares under heavy-tailed noise with a pull to equal weights, which falls with the square of the rows: what a
    dozen rows say about laws is mostly chance (stacking: Breiman 1996, Wolpert 1992).

    Args:
        held_out: (N, K) predictions out of fold, in units of the measured values' spread; rows with NaN are left out.
        measured: (N,).
        rows: of the sweep; N counts each once for every metric.
    """
    even = (EVEN / rows) ** 2
    known = np.isfinite(measured) & np.isfinite(held_out).all(axis=1)
    features, values = held_out[known], measured[known]
    count = held_out.shape[1]
    if not len(values):
        return np.full(count, 1 / count)
    kept = np.ones(count, bool)
    weights = np.zeros(count)
    for _ in range(count):
        weights[:] = 0
        weights[kept] = _simplex(features[:, kept], values, even)
        if weights[kept].min() >= LEAST:
            break
        kept = weights >= LEAST
    return weights


def _simplex(features: np.ndarray, values: np.ndarray, even: float) -> np.ndarray:
    count = features.shape[1]
    best = float(np.median((features - values[:, None]) ** 2, axis=0).min()) * MAD**2
    firm = 1e3 * np.sqrt(len(values)) * np.ones((1, count))
    pull = np.sqrt(even * best * len(values)) * np.eye(count)
    tail = np.ones(len(values))
    for _ in range(ROUNDS):
        left = np.vstack([features * tail[:, None], pull, firm])
        right = np.concatenate([values * tail, pull.sum(axis=0) / count, firm[0, :1]])
        found, _ = nnls(left, right)
        square = (features @ found - values) ** 2
        scale = max(float((tail**2 * square).mean()), 1e-300)
        tail = 1 / np.sqrt(tail_spread(square / scale))
    return found / found.sum()
