"""The slopes of a law's metrics by their own domains, drawn towards each other where the law is read for other runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opmix_ray.laws.base import Response
from opmix_ray.laws.extrapolate import Extrapolation


@dataclass(frozen=True)
class OwnSlope:
    """How a metric's loss changes with the log of its own domain's share.

    Args:
        fitted: as in the response; below 0 but for noise.
        error: its standard error.
    """

    fitted: float
    error: float

    @classmethod
    def of(cls, response: Response, own: int | None) -> OwnSlope | None:
        """The steepest fall; where there is none, the slope of the metric's own domain, which noise has turned.

        Args:
            response: of the metric.
            own: index of its own domain; None: not known. What raises such a metric may really do so.

        Returns:
            None where the metric falls with no domain's share and is not known to belong to one.
        """
        slopes = getattr(response, "slopes", np.zeros(1))
        at = int(slopes.argmin())
        if slopes[at] >= 0:
            if own is None or np.count_nonzero(slopes) != 1 or slopes[own] == 0:
                return None
            at = own
        variance = getattr(response, "covariance", np.zeros((at + 2, at + 2)))[at + 1, at + 1]
        return cls(float(slopes[at]), math.sqrt(max(0.0, float(variance))))

    @property
    def value(self) -> float:
        """How steeply the loss falls."""
        return -self.fitted

    def at_least(self, least: float) -> float:
        """The same, and no less than its error: that a slope is small, noise must not say."""
        return max(self.value, self.error, least)


def extrapolated(
    responses: Sequence[Response], metrics: Sequence[str], extrapolation: Extrapolation,
    *, own: Sequence[int | None], weights: np.ndarray,
) -> list[Response]:  # fmt: skip
    """All responses of a law read for other runs, their slopes drawn towards each other.

    Args:
        responses: one per metric.
        metrics: their names.
        extrapolation: how.
        own: for every metric the index of its own domain, or None.
        weights: (M,) in the objective; towards metrics that have none no slope is drawn.
    """
    slopes = [OwnSlope.of(response, domain) for response, domain in zip(responses, own, strict=True)]
    found = [slope for slope, weight in zip(slopes, weights, strict=True) if slope is not None and weight > 0]
    if extrapolation.slope_trust == 1 or not found:
        return [
            response.extrapolate(extrapolation, m) for response, m in zip(responses, metrics, strict=True)
        ]
    least = max(0.05 * float(np.median([slope.value for slope in found])), float(np.finfo(float).tiny))
    common = float(np.exp(np.mean([np.log(slope.at_least(least)) for slope in found])))
    read = []
    for response, metric, slope in zip(responses, metrics, slopes, strict=True):
        how = extrapolation
        if slope is not None:
            wanted = common * (slope.at_least(least) / common) ** extrapolation.slope_trust
            how = replace(extrapolation, slope_ratio=-extrapolation.slope_ratio * wanted / slope.fitted)
        read.append(response.extrapolate(how, metric))
    return read
