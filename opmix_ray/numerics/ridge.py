"""Weighted ridge regression with the penalty chosen by leave-one-out: on values, or on values and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PENALTIES = 10.0 ** np.arange(-7, 2.51, 0.5)  # over the mean squared singular value: scale-free
SLOPE_WEIGHTS = (
    0.01,
    0.1,
)  # of a derivative's square over that of a value; the better one out of fold is taken
_FOLDS = 8


@dataclass(frozen=True)
class RidgeFit:
    """`y = intercept + X beta`.

    Args:
        intercept, beta: coefficients, beta of shape (F,).
        covariance: (F + 1, F + 1) of (intercept at the features' mean, beta).
        mean: (F,) weighted mean of the features.
        sigma: residual standard deviation, by leave-one-out.
        loo: (N,) leave-one-out residuals.
    """

    intercept: float
    beta: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    sigma: float
    loo: np.ndarray


@dataclass(frozen=True)
class RidgePath:
    """Ridge for every penalty, so that several metrics can agree on one.

    Args:
        sigmas: (P,) residual standard deviations by leave-one-out.
        at: the fit with the penalty of an index.
    """

    sigmas: np.ndarray
    at: Callable[[int], RidgeFit]


def ridge_path(
    features: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    relief: np.ndarray | None = None,
    penalties: np.ndarray = PENALTIES,
) -> RidgePath:
    """Ridge for every penalty; the intercept is free.

    Args:
        features: (N, F).
        values: (N,).
        weights: (N,), of mean about 1.
        relief: (F,) factor on every feature before the penalty; 10 makes a feature 100 times cheaper.
        penalties: (P,) as a share of the mean squared singular value.

    Source: Golub, Heath and Wahba 1979; leave-one-out through the hat matrix.
    """
    relief = np.ones(features.shape[1]) if relief is None else relief
    total = weights.sum()
    mean = weights @ features / total
    centre = weights @ values / total
    root = np.sqrt(weights)
    left, singular, right = np.linalg.svd(root[:, None] * (features - mean) * relief, full_matrices=False)
    target = root * (values - centre)
    projected = left.T @ target
    unit = max(float((singular**2).mean()), 1e-300)
    shrink = singular**2 / (singular**2 + penalties[:, None] * unit)  # (penalties, rank)
    residual = target - shrink * projected @ left.T
    leverage = shrink @ (left**2).T + (weights / total)
    loo = residual / np.maximum(1 - leverage, 1e-6)
    sigmas = np.sqrt((loo**2).sum(axis=1) / total)

    def at(index: int) -> RidgeFit:
        penalty, sigma = penalties[index] * unit, float(sigmas[index])
        scale = relief[:, None] * right.T
        beta = scale @ (singular / (singular**2 + penalty) * projected)
        covariance = np.zeros((len(beta) + 1, len(beta) + 1))
        covariance[0, 0] = sigma**2 / total
        covariance[1:, 1:] = sigma**2 * (scale / (singular**2 + penalty)) @ scale.T
        return RidgeFit(
            float(centre - mean @ beta), beta, covariance, mean, sigma, loo[index] / np.maximum(root, 1e-12)
        )

    return RidgePath(sigmas, at)


def fit_ridge(
    features: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray = PENALTIES,
) -> RidgeFit:
    """Ridge with the penalty that has the least leave-one-out error; see `ridge_path`."""
    path = ridge_path(features, values, weights, penalties=penalties)
    return path.at(int(np.argmin(path.sigmas)))


def slopes_path(
    features: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    slope_features: np.ndarray,
    slope_values: np.ndarray,
    relief: np.ndarray | None = None,
    penalties: np.ndarray = PENALTIES,
) -> RidgePath:
    """Ridge on rows of which derivatives are known too: those of the features, times `beta`, are linear in it as well.

    Whole rows, value and derivatives together, are left out to judge a penalty; each with the better weight of the
    derivatives.

    Args:
        features, values, weights, relief, penalties: as in `ridge_path`.
        slope_features: (N, K, F) derivatives of the features.
        slope_values: (N, K) derivatives of the values; NaN where not measured.
    """
    count = len(values)
    relief = np.ones(features.shape[1]) if relief is None else relief
    known = np.isfinite(slope_values)
    rates = np.where(known[:, :, None], slope_features, 0.0) * relief
    scaled = features * relief
    squares = weights[:, None, None] * (rates.transpose(0, 2, 1) @ rates)  # (N, F, F)
    products = weights[:, None] * np.einsum("nkf,nk->nf", rates, np.where(known, slope_values, 0.0))

    def system(
        kept: np.ndarray, slope_weight: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        """Matrix and right side of the normal equations, mean of the features and of the values, unit of penalties."""
        w = weights[kept]
        mean, centre = w @ scaled[kept] / w.sum(), float(w @ values[kept] / w.sum())
        away = scaled[kept] - mean
        matrix = (away * w[:, None]).T @ away + slope_weight * squares[kept].sum(axis=0)
        right = away.T @ (w * (values[kept] - centre)) + slope_weight * products[kept].sum(axis=0)
        return matrix, right, mean, centre, max(float(np.trace(matrix)) / len(matrix), 1e-300)

    folds = [np.arange(count) % min(count, _FOLDS) == fold for fold in range(min(count, _FOLDS))]
    errors = np.zeros((len(SLOPE_WEIGHTS), len(penalties), count))
    for place, slope_weight in enumerate(SLOPE_WEIGHTS):
        for left in folds:
            matrix, right, mean, centre, unit = system(~left, slope_weight)
            roots, vectors = np.linalg.eigh(matrix)
            damped = np.maximum(roots, 0) + penalties[:, None] * unit  # (penalties, F)
            at = (scaled[left] - mean) @ vectors
            errors[place][:, left] = values[left] - centre - (vectors.T @ right) / damped @ at.T
    every = np.sqrt((weights * errors**2).sum(axis=2) / weights.sum())  # (slope weights, penalties)
    chosen = every.argmin(axis=0)

    def fit(index: int) -> RidgeFit:
        sigma = float(every[chosen[index], index])
        matrix, right, _, centre, unit = system(np.ones(count, bool), SLOPE_WEIGHTS[int(chosen[index])])
        inverse = np.linalg.inv(matrix + penalties[index] * unit * np.eye(len(matrix)))
        beta = relief * (inverse @ right)
        covariance = np.zeros((len(beta) + 1, len(beta) + 1))
        covariance[0, 0] = sigma**2 / weights.sum()
        covariance[1:, 1:] = sigma**2 * relief[:, None] * inverse * relief
        mean = weights @ features / weights.sum()
        loo = errors[chosen[index], index]
        return RidgeFit(float(centre - mean @ beta), beta, covariance, mean, sigma, loo)

    return RidgePath(every.min(axis=0), fit)
