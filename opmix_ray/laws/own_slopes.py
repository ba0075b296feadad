"""Which domain a metric is the held-out loss of, and its slope by that domain.

Slopes are drawn towards each other where a law is read for other runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opmix_ray.errors import UserError
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


def own_domain(metric: str, domains: Sequence[str]) -> int | None:
    """The domain a metric is named after, or None: `eval_code_loss` and `metric/the_code_val_loss` -> `code`."""

    def core(name: str) -> str:
        name = re.sub(r"^(metric/|eval/|train/)", "", name.lower())
        name = re.sub(r"^(eval_|train_|metric_)", "", name)
        return re.sub(r"(_val|_eval|_test)?[_/](loss|bpb|ppl|perplexity|nll|ce)$", "", name)

    wanted = core(metric)
    matches = [index for index, domain in enumerate(domains) if core(domain) == wanted]
    return matches[0] if len(matches) == 1 else None


def owners(
    metrics: Sequence[str], domains: Sequence[str], given: Mapping[str, str] | None = None
) -> tuple[int | None, ...]:
    """For every metric the index of its own domain, or None.

    Args:
        metrics: M names.
        domains: D names.
        given: domain by metric, where names do not tell.

    Raises:
        UserError: a domain is given that is not there.
    """
    found = []
    for metric in metrics:
        domain = (given or {}).get(metric)
        if domain is not None and domain not in domains:
            raise UserError(
                f"the metric {metric} cannot belong to it", key="own", value=domain,
                remedy=f"the domains are {', '.join(domains)}",
            )  # fmt: skip
        found.append(own_domain(metric, domains) if domain is None else list(domains).index(domain))
    return tuple(found)
