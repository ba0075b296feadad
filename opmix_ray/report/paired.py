"""Differences between candidates scored on the same sequences, with an interval each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from opmix_ray.draw.numbers import NBSP
from opmix_ray.trials.rows import TrialRow

LEVEL = f"95{NBSP}%"  # of the two-sided intervals here


@dataclass(frozen=True)
class Difference:
    """Loss of the first candidate minus that of the second, nats per token, with a 95 % interval."""

    mean: float
    low: float
    high: float


UNKNOWN = Difference(math.nan, math.nan, math.nan)


@np.errstate(over="ignore", invalid="ignore")
def difference(old: TrialRow, new: TrialRow, weights: Mapping[str, float]) -> Difference:
    """Weighted mean over sets of a paired ratio estimate (Cochran 1977, ch. 6): interval by Student's t,
    sets independent, degrees of freedom by Welch and Satterthwaite.

    Args:
        old, new: candidates that saw the same sequences.
        weights: weight per evaluation set.
    """
    mean = variance = spread = 0.0
    for name, weight in weights.items():
        if not weight:
            continue
        targets = np.asarray(old.targets.get(name) or [], dtype=np.float64)
        first, second = (np.asarray(row.nats.get(name) or [], dtype=np.float64) for row in (old, new))
        if not len(targets) == len(first) == len(second) or targets.sum() <= 0:
            return UNKNOWN
        gap = first - second
        ratio = gap.sum() / targets.sum()
        mean += weight * ratio
        if len(gap) < 2:
            return UNKNOWN
        rest = gap - ratio * targets
        part = weight**2 * len(gap) / (len(gap) - 1) * float((rest**2).sum()) / targets.sum() ** 2
        variance += part
        spread += part**2 / (len(gap) - 1)
    if not (math.isfinite(mean) and math.isfinite(variance)):
        return UNKNOWN
    half = float(stats.t.ppf(0.975, variance**2 / spread)) * math.sqrt(variance) if spread > 0 else 0.0
    return Difference(mean, mean - half, mean + half)
