"""A mixture: the share of training tokens drawn from each domain. Immutable, no I/O.

    >>> Mixture({"code": 3, "prose": 1}).shares
    {'code': 0.75, 'prose': 0.25}

Shares always mean tokens, not documents and not examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from opmix_ray.errors import UserError


class Mixture(Mapping[str, float]):
    """An immutable point on the simplex over named domains, in the order given.

    Args:
        weights: non-negative weight per domain, in any unit; normalised to sum to 1.

    Raises:
        UserError: a weight is negative or not finite, there is no domain, or all weights are 0.
    """

    __slots__ = ("_shares",)

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not weights:
            raise UserError("a mixture needs at least one domain", remedy="name the domains")
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise UserError(
                    "a weight must be a finite number of at least 0",
                    key=name,
                    value=weight,
                    remedy="give the domain's share of tokens, for example 0.2",
                )
        total = math.fsum(weights.values())
        if not 0 < total < math.inf:
            raise UserError(
                "the weights of a mixture must have a positive finite sum",
                key="mixture",
                value=dict(weights),
                remedy="give at least one domain a weight above 0",
            )
        self._shares = {name: float(weight) / total for name, weight in weights.items()}

    @classmethod
    def uniform(cls, domains: Iterable[str]) -> Mixture:
        """The same share for every domain."""
        return cls({name: 1.0 for name in domains})

    @classmethod
    def proportional(cls, tokens: Mapping[str, float]) -> Mixture:
        """Shares in proportion to the domains' token counts."""
        return cls(tokens)

    @classmethod
    def from_array(cls, domains: Iterable[str], shares: Iterable[float]) -> Mixture:
        """Shares as an array of shape (D,) in the order of `domains`; tiny negatives become 0."""
        values = np.asarray(list(shares), dtype=np.float64)
        values = np.where((values < 0) & (values > -1e-9), 0.0, values)
        return cls(dict(zip(domains, values.tolist(), strict=True)))

    @property
    def shares(self) -> dict[str, float]:
        """A plain dictionary of the shares."""
        return dict(self._shares)

    @property
    def domains(self) -> list[str]:
        """Domain names in order."""
        return list(self._shares)

    def array(self, domains: Iterable[str] | None = None) -> np.ndarray:
        """Shares as float64 of shape (D,), in the order of `domains` (missing ones are 0)."""
        names = self._shares if domains is None else domains
        return np.array([self._shares.get(name, 0.0) for name in names], dtype=np.float64)

    def expand(self, inside: Mapping[str, Mapping[str, float]]) -> Mixture:
        """Replace each component named in `inside` by the mixture it stands for."""
        leaves: dict[str, float] = {}
        for name, share in self._shares.items():
            parts = Mixture(inside[name]) if name in inside else {name: 1.0}
            for leaf, part in parts.items():
                leaves[leaf] = leaves.get(leaf, 0.0) + share * part
        return Mixture(leaves)

    def over(self, domains: Iterable[str]) -> Mixture:
        """The same mixture over another list of domains: new ones get 0, missing ones are dropped."""
        return Mixture({name: self._shares.get(name, 0.0) for name in domains})

    def joined(self) -> Mixture:
        """The same with every domain that has no share at its uniform one; the others shrink in proportion."""
        new = [name for name, share in self._shares.items() if share == 0]
        each = 1 / len(self._shares)
        rest = 1 - len(new) * each
        return Mixture({n: each if share == 0 else rest * share for n, share in self._shares.items()})

    def kl(self, prior: Mapping[str, float]) -> float:
        """KL(self || prior) in nats; infinite where the prior is 0 and this mixture is not."""
        total = 0.0
        for name, share in self._shares.items():
            if share > 0:
                other = prior.get(name, 0.0)
                if other <= 0:
                    return math.inf
                total += share * math.log(share / other)
        return total

    def distance(self, other: Mapping[str, float]) -> float:
        """Total variation distance to `other`, between 0 and 1."""
        names = dict.fromkeys([*self._shares, *other])
        return 0.5 * math.fsum(abs(self._shares.get(n, 0.0) - other.get(n, 0.0)) for n in names)

    def __getitem__(self, name: str) -> float:
        return self._shares[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)

    def __hash__(self) -> int:
        return hash(tuple(self._shares.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._shares == dict(other)

    def __repr__(self) -> str:
        return f"Mixture({', '.join(f'{n}={s:.4f}' for n, s in self._shares.items())})"


def fill_box(weights: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float) -> np.ndarray:
    """Scale weights into a box on the simplex: `clip(c * weights, lower, upper)` with sum 1.

    This is water-filling: one common factor `c`, found by bisection. Zero weights rise evenly when
    nothing else can.

    Args:
        weights: shape (D,), non-negative.
        lower: least share, shape (D,) or one number.
        upper: greatest share, shape (D,) or one number.

    Returns:
        Shape (D,), sums to 1, inside the box.

    Raises:
        UserError: `sum(lower) > 1` or `sum(upper) < 1`.
    """
    weights = np.maximum(np.asarray(weights, dtype=np.float64), 0.0) + 1e-12
    lower = np.broadcast_to(np.asarray(lower, dtype=np.float64), weights.shape)
    upper = np.broadcast_to(np.asarray(upper, dtype=np.float64), weights.shape)
    if lower.sum() > 1 + 1e-9 or upper.sum() < 1 - 1e-9 or (lower > upper + 1e-12).any():
        raise UserError(
            f"bounds cannot be met: least shares sum to {lower.sum():.4f} (at most 1), "
            f"greatest shares sum to {upper.sum():.4f} (at least 1)",
            key="bounds",
            remedy="lower the least shares or raise the greatest ones",
        )
    low, high = 0.0, 1.0
    while np.clip(high * weights, lower, upper).sum() < 1 and high < 1e30:
        high *= 2
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.clip(middle * weights, lower, upper).sum() < 1:
            low = middle
        else:
            high = middle
    filled = np.clip(high * weights, lower, upper)
    free = (filled > lower) & (filled < upper)
    if free.any():
        filled[free] += (1 - filled.sum()) * filled[free] / filled[free].sum()
    return filled
