"""Components of a decision and the data mixtures they stand for: `p = E^T w`, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture

_PULL = 1e3  # how much the weights' sum of 1 counts against the distance to the mixture


@dataclass(frozen=True)
class Components:
    """The probes of one decision.

    Args:
        names: C components, for example `old`, `code`, `prose`.
        domains: D domains.
        data: (C, D) share of every domain in what a component's probe saw; rows sum to 1. E in the paper.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        if self.data.shape != (len(self.names), len(self.domains)):
            raise ValueError(f"data is {self.data.shape}, expected {(len(self.names), len(self.domains))}")

    def ratios(self, weights: np.ndarray) -> np.ndarray:
        """Data mixtures `p = E^T w` of interpolation weights, (C,) -> (D,) or (n, C) -> (n, D)."""
        return np.asarray(weights) @ self.data

    def weights_for(self, mixture: Mixture) -> np.ndarray:
        """Interpolation weights (C,) whose data mixture is nearest to the one given.

        A mixture outside what the probes span (a share below what every probe saw) gets the nearest one inside.
        Among equals the least-squares solution with few components is taken; the component whose data is the
        mixture itself is taken where there is one.

        Raises:
            UserError: the mixture names a domain that no probe saw.
        """
        for name, share in mixture.items():
            if share > 0 and name not in self.domains:
                raise UserError(
                    "no probe has seen this domain", key=name, remedy=f"known: {', '.join(self.domains)}"
                )
        target = mixture.array(self.domains)
        exact = np.abs(self.data - target).sum(axis=1)
        if exact.min() < 1e-9:
            return np.eye(len(self.names))[int(np.argmin(exact))]
        system = np.vstack([self.data.T, _PULL * np.ones(len(self.names))])
        weights, _ = nnls(system, np.append(target, _PULL))
        return weights / weights.sum()
