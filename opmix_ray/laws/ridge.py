"""Weighted ridge regression with the penalty chosen by leave-one-out: on values, or on values and derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = 10.0 ** np.arange(-7, 2.51, 0.5)  # over the mean squared singular value: scale-free


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


def fit_ridge(
    features: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    relief: np.ndarray | None = None,
    penalties: np.ndarray = PENALTIES,
) -> RidgeFit:
    """Ridge with the penalty that has the least leave-one-out error; the intercept is free.

    Args:
        features: (N, F).
        values: (N,).
        weights: (N,), of mean about 1.
        relief: (F,) factor on every feature before the penalty; 10 makes a feature 100 times cheaper.
        penalties: candidates, as a share of the mean squared singular value.

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
    best = int(np.argmin((loo**2).sum(axis=1)))
    penalty = penalties[best] * unit
    scale = relief[:, None] * right.T
    beta = scale @ (singular / (singular**2 + penalty) * projected)
    sigma = float(np.sqrt((loo[best] ** 2).sum() / total))
    covariance = np.zeros((len(beta) + 1, len(beta) + 1))
    covariance[0, 0] = sigma**2 / total
    covariance[1:, 1:] = sigma**2 * (scale / (singular**2 + penalty)) @ scale.T
    return RidgeFit(
        float(centre - mean @ beta), beta, covariance, mean, sigma, loo[best] / np.maximum(root, 1e-12)
    )


SLOPE_WEIGHTS = (
    0.01,
    0.1,
)  # of a derivative's square over that of a value; the better one out of fold is taken
_FOLDS = 8


def fit_ridge_slopes(
    features: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    slope_features: np.ndarray,
    slope_values: np.ndarray,
    relief: np.ndarray | None = None,
    penalties: np.ndarray = PENALTIES,
) -> RidgeFit:
    """Ridge on rows of which derivatives are known too: those of the features, times `beta`, are linear in it as well.

    Whole rows, value and derivatives together, are left out to choose the penalty and the weight of derivatives.

    Args:
        features, values, weights, relief, penalties: as in `fit_ridge`.
        slope_features: (N, K, F) derivatives of the features.
        slope_values: (N, K) derivatives of the values; NaN where not measured.
    """
    count = len(values)
    relief = np.ones(features.shape[1]) if relief is None else relief
    known = np.isfinite(slope_values)
    rates = np.where(known[:, :, None], slope_features, 0.0) * relief
    scaled = features * relief
    weighed = weights[:, None, None]
    squares = weighed * (rates.transpose(0, 2, 1) @ rates)  # (N, F, F)
    products = weights[:, None] * np.einsum("nkf,nk->nf", rates, np.where(known, slope_values, 0.0))

    def system(kept: np.ndarray, slope_weight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Matrix and right side of the normal equations, mean of the features and of the values."""
        w = weights[kept]
        mean, centre = w @ scaled[kept] / w.sum(), float(w @ values[kept] / w.sum())
        away = scaled[kept] - mean
        matrix = (away * w[:, None]).T @ away + slope_weight * squares[kept].sum(axis=0)
        right = away.T @ (w * (values[kept] - centre)) + slope_weight * products[kept].sum(axis=0)
        return matrix, right, mean, centre

    folds = [np.arange(count) % min(count, _FOLDS) == fold for fold in range(min(count, _FOLDS))]
    errors = np.zeros((len(SLOPE_WEIGHTS), len(penalties), count))
    for place, slope_weight in enumerate(SLOPE_WEIGHTS):
        for left in folds:
            matrix, right, mean, centre = system(~left, slope_weight)
            roots, vectors = np.linalg.eigh(matrix)
            unit = max(float(np.trace(matrix)) / len(matrix), 1e-300)
            shrunk = (vectors.T @ right) / (
                np.maximum(roots, 0) + penalties[:, None] * unit
            )  # (penalties, F)
            at = (scaled[left] - mean) @ vectors
            errors[place][:, left] = values[left] - centre - shrunk @ at.T
    totals = (weights * errors**2).sum(axis=2)
    chosen, best = np.unravel_index(int(np.argmin(totals)), totals.shape)
    matrix, right, mean, centre = system(np.ones(count, bool), SLOPE_WEIGHTS[int(chosen)])
    matrix += penalties[best] * max(float(np.trace(matrix)) / len(matrix), 1e-300) * np.eye(len(matrix))
    inverse = np.linalg.inv(matrix)
    beta = relief * (inverse @ right)
    loo = errors[chosen, best]
    sigma = float(np.sqrt(totals[chosen, best] / weights.sum()))
    covariance = np.zeros((len(beta) + 1, len(beta) + 1))
    covariance[0, 0] = sigma**2 / weights.sum()
    covariance[1:, 1:] = sigma**2 * relief[:, None] * inverse * relief
    mean = weights @ features / weights.sum()
    return RidgeFit(float(centre - mean @ beta), beta, covariance, mean, sigma, loo)
