"""Weighted ridge regression with the penalty chosen by leave-one-out in closed form."""

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
