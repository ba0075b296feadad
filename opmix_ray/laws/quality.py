"""Cross-validation: folds, and what predictions out of fold say about a law."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr

FOLDS = 10

Quality = dict[str, dict[str, float | int | None]]


def make_folds(rows: int, seed: int) -> list[np.ndarray]:
    """Held-out row indices of every fold: 10 folds, leave-one-out below 20 rows, at most `rows`."""
    count = rows if rows < 2 * FOLDS else FOLDS
    order = np.random.default_rng([seed, rows]).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, count)]


def score(measured: np.ndarray, in_sample: np.ndarray, held_out: np.ndarray) -> dict[str, float | int | None]:
    """Quality of one column: `r2` in sample; `spearman_cv`, `rmse_cv`, `r2_cv` out of fold; `rows`.

    `None` where a figure is not defined (a constant metric, too few rows).
    """
    known = np.isfinite(measured)
    both = known & np.isfinite(held_out)
    return {
        "r2": _r2(measured[known], in_sample[known]),
        "spearman_cv": spearman(measured[both], held_out[both]),
        "rmse_cv": float(np.sqrt(((measured - held_out)[both] ** 2).mean())) if both.any() else None,
        "r2_cv": _r2(measured[both], held_out[both]),
        "rows": int(known.sum()),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, or None where it is not defined."""
    if len(first) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        value = float(spearmanr(first, second).statistic)
    return value if np.isfinite(value) else None


def _r2(measured: np.ndarray, predicted: np.ndarray) -> float | None:
    if len(measured) < 2:
        return None
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - predicted) ** 2).sum()) / spread if spread > 0 else None
