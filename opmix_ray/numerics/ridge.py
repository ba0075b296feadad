"""Weighted ridge regression: penalties by leave-one-out, on values or on values and derivatives; or by the evidence.

Noise has heavy tails: Student's t with few degrees of freedom, so that a failed run does not bend a law.

Laws fit it by reweighting rows (Lange, Little and Taylor 1989). A smooth law can follow a failed run instead of
refusing it, so the first weights come from elsewhere: from a plain ridge on log shares, by leave-one-out. A row that is
only unusual gets its weight back as soon as a better law explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

PENALTIES = 10.0 ** np.arange(-7, 2.51, 0.5)  # over the mean squared singular value: scale-free
SLOPE_WEIGHTS = (
    0.01,
    0.1,
)  # of a derivative's square over that of a value; the better one out of fold is taken
_FOLDS = 8
DEGREES = 4.0
EPS = 0.03  # of the plain law of `first_spread`
FEW = 8  # rows up to which nothing is said
MAD = 1.4826  # standard deviation over the median of absolute values, of a normal
ROUNDS = 3


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


SPREAD = (
    0.15  # expected of slopes about the common one, and of the other coefficients, in units of the values
)
OWN = 1.0  # how far from 1 the common slope is expected
_FIRST = (0.05, 0.2)  # spreads where the search begins
_NONE = -6.0  # log of a spread that is as good as none


@dataclass(frozen=True)
class Corrections:
    """`y_m = level + (common + own_m) x_m + coefficients_m . z` for M metrics: ridge with penalties by the evidence.

    Spreads of the own slopes and of the coefficients, and the noise, are the same for all metrics (empirical Bayes).
    Few rows leave both spreads near 0.

    Args:
        theta: log of the two spreads and of the noise.
        common: slope that all metrics share.
        coefficients: (M, F + 1) own slope and the others.
        covariance: (M, F + 1, F + 1) of these.
        level, mean: (M,) and (M, F + 1) means of values and of `[x, z]`.
        rows: (M,) sums of the weights.
    """

    theta: np.ndarray
    common: float
    coefficients: np.ndarray
    covariance: np.ndarray
    level: np.ndarray
    mean: np.ndarray
    rows: np.ndarray

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviation (M,) of a new row at the mean."""
        return np.asarray(np.exp(self.theta[2]) * np.sqrt(1 + 1 / self.rows))

    @property
    def slopes(self) -> np.ndarray:
        """(M, F + 1) of `[x, z]`."""
        return self.coefficients + self.common * np.eye(1, self.mean.shape[1])

    def predict(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values (n, M) at x (n, M) and z (n, F)."""
        return self.level + np.einsum("nmf,mf->nm", _joined(x, z) - self.mean, self.slopes)

    def std(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Standard errors (n, M) for new rows."""
        away = _joined(x, z) - self.mean
        return np.sqrt(
            self.sigma**2 + np.einsum("nmf,mfg,nmg->nm", away, self.covariance, away, optimize=True)
        )


def _joined(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [x[:, :, None], np.broadcast_to(z[:, None], (len(z), x.shape[1], z.shape[1]))], axis=2
    )


def fit_corrections(
    x: np.ndarray,
    z: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    like: Corrections | None = None,
    free: int = 2,
) -> Corrections:
    """Fit all metrics together.

    Args:
        x: (N, M); z: (N, F).
        values: (N, M), NaN where one is missing; of a spread of about 1.
        weights: (N, M), of mean about 1.
        like: keep the spreads and the noise that this one found.
        free: 0: the common slope alone; 1: own slopes too; 2: the other coefficients too.
    """
    weights = np.where(np.isfinite(values), weights, 0.0)
    features, count = _joined(x, z), z.shape[1] + 1
    rows = np.maximum(weights.sum(axis=0), 1e-9)
    mean = np.einsum("nm,nmf->mf", weights, features) / rows[:, None]
    level = (weights * np.nan_to_num(values)).sum(axis=0) / rows
    away, rest = features - mean, np.nan_to_num(values) - level
    gram = np.einsum("nm,nmf,nmg->mfg", weights, away, away, optimize=True)
    pull = np.einsum("nm,nmf,nm->mf", weights, away, rest, optimize=True)
    square = float((weights * rest**2).sum())
    degrees = float(np.maximum((weights > 0).sum(axis=0) - 1, 0).sum())
    first = gram[:, :, 0]

    def solved(theta: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        own, other, noise = np.exp(theta)
        prior = np.concatenate([[own], np.full(count - 1, other)])
        inner = np.eye(count) + prior[:, None] * gram * prior / noise**2
        covariance = prior[:, None] * np.linalg.inv(inner) * prior
        inverse = covariance / noise**2
        left = pull[:, 0] - np.einsum("mf,mfg,mg->m", first, inverse, pull)
        across = first[:, 0] - np.einsum("mf,mfg,mg->m", first, inverse, first)
        common = float((left.sum() / noise**2 + OWN**-2) / (across.sum() / noise**2 + OWN**-2))
        target = pull - common * first
        error = square + float((common**2 * first[:, 0] - 2 * common * pull[:, 0]).sum())
        error -= float(np.einsum("mf,mfg,mg->", target, inverse, target))
        value = degrees * theta[2] + 0.5 * (np.linalg.slogdet(inner)[1].sum() + error / noise**2)
        value += 0.5 * ((own**2 + other**2) / SPREAD**2 + ((common - 1) / OWN) ** 2)
        return float(value), common, np.einsum("mfg,mg->mf", inverse, target), covariance

    if like is None:
        plain = max(square + float((first[:, 0] - 2 * pull[:, 0]).sum()), 0.0) / max(degrees, 1.0)
        starts = [
            np.log([spread, spread, max(plain**0.5, 1e-3) / (1 + k)]) for k, spread in enumerate(_FIRST)
        ]
        bounds = [(_NONE, 1.0 if free > k else _NONE) for k in range(2)] + [(-7.0, 1.0)]
        starts = [np.clip(start, *np.transpose(bounds)) for start in starts]
        found = [
            minimize(lambda t: solved(t)[0], start, method="L-BFGS-B", bounds=bounds) for start in starts
        ]
        theta = np.asarray(min(found, key=lambda one: float(one.fun)).x)
    else:
        theta = like.theta
    _, common, coefficients, covariance = solved(theta)
    return Corrections(theta, common, coefficients, covariance, level, mean, rows)


def tail_spread(square: np.ndarray) -> np.ndarray:
    """Variance of each row's noise over the scale, given squared residuals over the scale, (n,) -> (n,)."""
    return (DEGREES + square) / (DEGREES + 1)


def first_spread(ratios: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What a plain law says about every row's noise, (n,), at least 0.8; ones where there are few rows.

    Args:
        ratios: (n, D); values: (n,); weights: (n,), of mean about 1.
    """
    ones = np.ones(len(values))
    if len(values) <= FEW:
        return ones
    features = np.log(ratios + EPS)
    found = ones
    for _ in range(ROUNDS):
        trust = weights / found
        residual = fit_ridge(features, values, trust / trust.mean()).loo * np.sqrt(weights)
        scale = MAD * float(np.median(np.abs(residual)))
        if scale <= 0:
            return ones
        found = tail_spread((residual / scale) ** 2)
    return found
