"""Heavy-tailed noise: Student's t with few degrees of freedom, so that a failed run does not bend a law.

Laws fit it by reweighting rows (Lange, Little and Taylor 1989). A smooth law can follow a failed run instead of
refusing it, so the first weights come from elsewhere: from a plain ridge on log shares, by leave-one-out. A row that is
only unusual gets its weight back as soon as a better law explains it.
"""

from __future__ import annotations

import numpy as np

from opmix_ray.numerics.ridge import fit_ridge

DEGREES = 4.0
EPS = 0.03  # of the plain law
FEW = 8  # rows up to which nothing is said
MAD = 1.4826  # standard deviation over the median of absolute values, of a normal
ROUNDS = 3


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
