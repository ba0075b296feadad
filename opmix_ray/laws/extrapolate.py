"""Reading a law fitted on interpolated probes for models that are really trained.

Four things are known about the difference (docs/decisions.md has the measurements):

- A trained model's loss follows `log(p + eps)` with an `eps` that is worth about two optimiser steps of data, so it
  falls with the length of the stage (`eps_steps`).
- It follows it more steeply than added-up probes do, the more so the longer the stage is and the shorter the probes
  were (`stage_growth`).
- How much steeper one domain's curve is than another's, short probes tell only in part: the steepness of probes is
  drawn towards their common one, to the power `slope_trust`.
- What is left open about a slope after that widens the standard error of predictions away from the mixture in force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix_ray.errors import UserError

_PART, _WHOLE = 0.02, 0.9  # shares between which the response of probes is taken
SLOPE_DOUBT = 0.25  # standard deviation of log(true slope / read slope) between domains; docs/decisions.md


@dataclass(frozen=True)
class Extrapolation:
    """How a law in log shares is read for other runs than it was fitted on.

    Args:
        eps_ratio: pseudo-count of the predictions over the fitted one.
        eps: pseudo-count of the predictions, instead of a ratio.
        slope_ratio: slopes of the logs in the predictions over the fitted ones; below 0 where noise has turned these.
        growth: slopes in the predictions over the fitted response between a share of 2 % and one of 90 %, which depends
            little on the pseudo-count of the fit; `eps` is then taken as it is. None: the fitted slopes.
        slope_trust: 1: every metric's own slope; 0: the geometric mean of all; between: that power of the ratio.
        transfer_trust: factor on the linear terms, which hold what domains do for one another's metrics.
        anchor: (D,) mixture whose prediction stays as it is (the one trained on so far); none: uniform.
    """

    eps_ratio: float | None = 0.01
    eps: float | None = None
    slope_ratio: float = 1.0
    growth: float | None = None
    slope_trust: float = 1.0
    transfer_trust: float = 1.0
    anchor: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "eps_ratio", "growth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(
                    "must be above 0", key=name, value=value, remedy="leave it out for the default"
                )
        if not self.slope_ratio or not math.isfinite(self.slope_ratio):
            raise UserError(
                "must not be 0",
                key="slope_ratio",
                value=self.slope_ratio,
                remedy="leave it out for the default",
            )
        for name in ("slope_trust", "transfer_trust"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(
                    "must be in [0, 1]", key=name, value=value, remedy="0 is none, 1 is full trust"
                )
        if self.eps is None and self.eps_ratio is None:
            raise UserError(
                "one of eps and eps_ratio is needed", key="extrapolation", remedy="give eps_ratio"
            )
        if self.growth is not None and self.eps is None:
            raise UserError(
                "needs a pseudo-count of its own", key="growth", value=self.growth, remedy="give eps too"
            )

    def read_slope(self, fitted_eps: float) -> float:
        """Slopes in the predictions over the fitted ones."""
        if self.growth is None:
            return self.slope_ratio
        return self.slope_ratio * self.growth * math.log((_WHOLE + fitted_eps) / (_PART + fitted_eps))

    def read_eps(self, fitted: float) -> float:
        """The pseudo-count of the predictions; without `growth` never above the fitted one."""
        if self.growth is not None and self.eps is not None:
            return self.eps
        return min(self.eps, fitted) if self.eps is not None else fitted * float(self.eps_ratio or 1.0)

    def anchor_array(self, domains: int) -> np.ndarray:
        """The anchor as an array of shape (1, D)."""
        if self.anchor is None:
            return np.full((1, domains), 1 / domains)
        if len(self.anchor) != domains:
            raise UserError(
                f"the anchor has {len(self.anchor)} shares, the law {domains}",
                key="extrapolation.anchor",
                remedy="give one share per domain",
            )
        return np.asarray(self.anchor, dtype=np.float64)[None]


def stage_growth(factor: float, eps_steps: float, steps: float, probe_steps: float) -> float:
    """How much steeper a stage's losses are in the log of the shares than the response of probes is large.

    Slopes grow with `log(1 + steps / eps_steps)`, in training and in probes: what a domain's data have left to teach
    shrinks in proportion to how much of them was seen.

    Args:
        factor: measured, see docs/decisions.md.
        eps_steps: optimiser steps that the pseudo-count is worth.
        steps: of the stage.
        probe_steps: of the probes.
    """
    return factor * math.log1p(steps / eps_steps) / math.log1p(probe_steps / eps_steps)
