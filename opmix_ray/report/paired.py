"""Differences between candidates scored on the same sequences, with an interval each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opmix_ray.search.rows import TrialRow

Z = 1.959964  # two-sided 95 %
LEVEL = "95 %"


@dataclass(frozen=True)
class Difference:
    """Loss of the first candidate minus that of the second, nats per token, with a 95 % interval."""

    mean: float
    low: float
    high: float


UNKNOWN = Difference(math.nan, math.nan, math.nan)


def difference(old: TrialRow, new: TrialRow, weights: Mapping[str, float]) -> Difference:
    """Weighted mean over sets of a paired ratio estimate (Cochran 1977, ch. 6): normal interval, sets independent.

    Args:
        old, new: candidates that saw the same sequences.
        weights: weight per evaluation set.
    """
    mean = variance = 0.0
    for name, weight in weights.items():
        if not weight:
            continue
        targets = np.asarray(old.targets.get(name) or [], dtype=np.float64)
        first, second = (np.asarray(row.nats.get(name) or [], dtype=np.float64) for row in (old, new))
        if not len(targets) == len(first) == len(second) or targets.sum() <= 0:
            return UNKNOWN
        with np.errstate(invalid="ignore"):
            gap = first - second
        ratio = gap.sum() / targets.sum()
        mean += weight * ratio
        if len(gap) > 1:
            rest = gap - ratio * targets
            error = len(gap) / (len(gap) - 1) * float((rest**2).sum()) / targets.sum() ** 2
            variance += weight**2 * error
        else:
            variance = math.nan
    if not math.isfinite(mean):
        return UNKNOWN
    half = Z * math.sqrt(variance) if math.isfinite(variance) else math.nan
    return Difference(mean, mean - half, mean + half)
