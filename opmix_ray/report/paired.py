"""Differences between candidates scored on the same sequences, with an interval each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from opmix_ray.config.objective import Objective
from opmix_ray.draw.numbers import NBSP
from opmix_ray.trials.rows import TrialRow

LEVEL = f"95{NBSP}%"  # of the two-sided intervals here


@dataclass(frozen=True)
class Difference:
    """What is minimised, of the first candidate minus that of the second, with a 95 % interval."""

    mean: float
    low: float
    high: float


UNKNOWN = Difference(math.nan, math.nan, math.nan)


@np.errstate(over="ignore", invalid="ignore")
def difference(old: TrialRow, new: TrialRow, objective: Objective | Mapping[str, float]) -> Difference:
    """The difference from paired ratio estimates by set (Cochran 1977, ch. 6), which count as independent.

    The interval is Student's t with degrees of freedom by Welch and Satterthwaite. An objective that is no mean enters
    by its slopes.

    Args:
        old, new: candidates that saw the same sequences.
        objective: what is minimised; weights by set mean the weighted mean loss.
    """
    aim = Objective.of(objective)
    before, after = (
        [sum(row.nats.get(name, ())) / (sum(row.targets.get(name, ())) or math.nan) for name in aim.sets]
        for row in (old, new)
    )
    slopes = aim.gradient(np.array(before))
    mean, variance, spread = float(aim.value(np.array(before)) - aim.value(np.array(after))), 0.0, 0.0
    for name, weight in zip(aim.sets, slopes.tolist(), strict=True):
        targets = np.asarray(old.targets.get(name) or [], dtype=np.float64)
        first, second = (np.asarray(row.nats.get(name) or [], dtype=np.float64) for row in (old, new))
        if not len(targets) == len(first) == len(second) or targets.sum() <= 0:
            return UNKNOWN
        gap = first - second
        ratio = gap.sum() / targets.sum()
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
