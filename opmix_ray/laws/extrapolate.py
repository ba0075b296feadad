"""Reading a law fitted on interpolated probes for models that are really trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opmix_ray.errors import UserError


@dataclass(frozen=True)
class Extrapolation:
    """How a log-share law is read for other runs than it was fitted on.

    Args:
        eps_ratio: pseudo-count of the predictions over the fitted one.
        eps: pseudo-count of the predictions, instead of a ratio.
        slope_ratio: slopes of the predictions over the fitted ones.
        anchor: (D,) mixture whose prediction stays as it is (the one trained on so far); none: uniform.
    """

    eps_ratio: float | None = 0.01
    eps: float | None = None
    slope_ratio: float = 1.0
    anchor: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "eps_ratio", "slope_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(
                    "must be above 0", key=name, value=value, remedy="leave it out for the default"
                )
        if self.eps is None and self.eps_ratio is None:
            raise UserError(
                "one of eps and eps_ratio is needed", key="extrapolation", remedy="give eps_ratio"
            )

    def read_eps(self, fitted: float) -> float:
        """The pseudo-count of the predictions."""
        return self.eps if self.eps is not None else fitted * float(self.eps_ratio or 1.0)

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
