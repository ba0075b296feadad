"""The old mixture as one coordinate: laws and proposals over {old, new domains}, its inside kept as it is.

part = OldPart(Mixture({"web": 0.7, "code": 0.3}), ("web", "code", "chat"))
part.names                                       # ["old", "chat"]
part.reduce(np.array([[0.35, 0.15, 0.5]]))       # [[0.5, 0.5]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opmix_ray.mixture import Mixture

OLD = "old"


@dataclass(frozen=True)
class OldPart:
    """What of a stage's domains is old.

    Args:
        inside: share of every old domain in the old data.
        domains: D domains of the stage, the old ones among them.
    """

    inside: Mixture
    domains: tuple[str, ...]

    @classmethod
    def of(cls, old: Mixture | None, current: Mixture) -> OldPart | None:
        """What is old in a stage; None where nothing is, or nothing is new.

        The inside is that of the mixture in force, and of the old mixture where none of its domains is in force.

        Args:
            old: what was trained on before the stage; none: the mixture in force.
            current: in force, over the stage's domains.
        """
        was = [name for name in current if (old or current).get(name, 0.0) > 0]
        if not was or len(was) == len(current):
            return None
        source = current if any(current[name] > 0 for name in was) else (old or current)
        return cls(Mixture({name: source[name] for name in was}), tuple(current))

    @property
    def new(self) -> list[str]:
        """Domains that are not old."""
        return [name for name in self.domains if name not in self.inside]

    @property
    def names(self) -> list[str]:
        """`old`, then the new domains: K names."""
        return [OLD, *self.new]

    @property
    def expand(self) -> dict[str, Mapping[str, float]]:
        """What `propose` needs to know about `old`."""
        return {OLD: self.inside.shares}

    def reduce(self, ratios: np.ndarray) -> np.ndarray:
        """Shares of domains (N, D) as shares of `old` and the new domains, (N, K)."""
        ratios = np.atleast_2d(ratios)
        old = [index for index, name in enumerate(self.domains) if name in self.inside]
        new = [self.domains.index(name) for name in self.new]
        return np.column_stack([ratios[:, old].sum(axis=1), ratios[:, new]])

    def reduced(self, mixture: Mixture) -> Mixture:
        """A mixture of domains as one of `old` and the new domains."""
        return Mixture.from_array(self.names, self.reduce(mixture.array(self.domains))[0])
