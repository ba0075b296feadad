"""Stopping early a candidate that is certainly worse than the best one so far.

Both are measured on the same sequences, so differences are paired. After each part of the sequences the difference of
the objectives is estimated, with its standard error; where the whole interval is above 0, the rest is spared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from opmix_ray.model.loss import SetLoss


@dataclass(frozen=True)
class Rival:
    """The candidate to beat.

    Args:
        nats: set -> nats of every sequence.
        targets: set -> target tokens of every sequence.
    """

    nats: Mapping[str, Sequence[float]]
    targets: Mapping[str, Sequence[int]]


def lead(
    losses: Mapping[str, SetLoss], rival: Rival, objective: Mapping[str, float], confidence: float
) -> float:
    """Least amount, nats per token, by which the rival's objective is lower, at a one-sided confidence.

    `sum_m weight_m * sum_i d_mi / sum_i t_mi` over the sequences seen, with `d` the difference of the nats and `t` the
    targets: a combined ratio estimate from strata (Cochran 1977, section 6.11), Student's interval.

    Args:
        losses: of the candidate, on the first sequences of each set.
        rival: at least as many sequences of each set.
        objective: weight per set.
        confidence: of the interval; one-sided.

    Returns:
        Above 0 where the candidate is certainly worse; minus infinity where too little is known.
    """
    mean, variance, freedom = 0.0, 0.0, 0
    for name, weight in objective.items():
        seen = len(losses[name].nats) if name in losses else 0
        if not weight or not seen:
            continue
        if seen < 2:
            return -math.inf
        targets = np.maximum(losses[name].tokens.astype(np.float64), 0.0)
        total = max(1.0, float(targets.sum()))
        difference = losses[name].nats - np.asarray(rival.nats[name][:seen])
        rate = float(difference.sum()) / total
        residual = difference - rate * targets
        mean += weight * rate
        variance += weight**2 * seen / (seen - 1) * float((residual**2).sum()) / total**2
        freedom += seen - 1
    if not freedom or not math.isfinite(mean):
        return -math.inf
    return mean - float(stdtrit(freedom, confidence)) * math.sqrt(variance)
