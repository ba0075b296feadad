"""A mixture: the share of training tokens drawn from each domain. Immutable, no I/O. And the nearest that data allow.

    >>> Mixture({"code": 3, "prose": 1}).shares
    {'code': 0.75, 'prose': 0.25}

Shares always mean tokens, not documents and not examples.

>>> caps = share_caps({"code": 100, "prose": 900}, {"code": 4, "prose": 4}, {}, stage_tokens=1000)
>>> mixture, moved = fit_to_caps(Mixture({"code": 0.6, "prose": 0.4}), caps)
>>> {name: round(share, 9) for name, share in mixture.items()}
{'code': 0.4, 'prose': 0.6}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from opmix_ray.errors import UserError, typed


class Mixture(Mapping[str, float]):
    """An immutable point on the simplex over named domains, in the order given.

    Args:
        weights: non-negative weight per domain, in any unit; normalised to sum to 1.

    Raises:
        UserError: not a mapping, a weight is negative or no finite number, there is no domain, or all weights are 0.
    """

    __slots__ = ("_shares",)

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping):
            raise UserError(
                "a mixture is a mapping of domains to weights",
                key="weights",
                value="None" if weights is None else weights,
                remedy="for example {'code': 0.2, 'prose': 0.8}",
            )
        if not weights:
            raise UserError("a mixture needs at least one domain", remedy="name the domains")
        for name, weight in weights.items():
            if not _is_weight(weight):
                raise UserError(
                    "a weight must be a finite number of at least 0",
                    key=str(name),
                    value="None" if weight is None else weight,
                    remedy="give the domain's share of tokens, for example 0.2",
                )
        try:
            total = math.fsum(weights.values())
        except OverflowError:
            total = math.inf
        if not 0 < total < math.inf:
            raise UserError(
                "the weights of a mixture must have a positive finite sum",
                key="mixture",
                value=dict(weights),
                remedy="give at least one domain a weight above 0",
            )
        self._shares = {name: float(weight) / total for name, weight in weights.items()}

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mixture:
        """A mixture as it is, or of weights in any unit."""
        return weights if isinstance(weights, cls) else cls(weights)

    @classmethod
    @typed
    def uniform(cls, domains: Iterable[str]) -> Mixture:
        """The same share for every domain."""
        names = list(domains)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError("stands twice", key="domains", value=twice, remedy="name each domain once")
        return cls({name: 1.0 for name in names})

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


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, Real) and bool(0 <= weight < math.inf)  # type: ignore[operator]


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
    if (lower > upper + 1e-12).any():
        place = int(np.argmax(lower - upper))
        raise UserError(
            f"bounds cannot be met: a least share, {lower[place]:.4g}, is above the greatest, {upper[place]:.4g}",
            key="bounds",
            remedy="lower the least share or raise the greatest one",
        )
    if lower.sum() > 1 + 1e-9 or upper.sum() < 1 - 1e-9:
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


SHOWN = 8  # domains that an error names one by one
ROUNDING = 1e-9  # a share this close to a bound is at the bound


def epochs(
    mixture: Mapping[str, float],
    tokens_per_domain: Mapping[str, float],
    total_tokens: float,
    used: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How often each domain of `mixture` will have been gone through: (share * total + used) / tokens.

    Args:
        mixture: shares by domain.
        tokens_per_domain: training tokens there are.
        total_tokens: tokens still to be drawn with this mixture.
        used: tokens drawn before; domains it leaves out get 0.

    Returns:
        Epochs by domain; infinite where tokens are asked of a domain that has none.
    """
    used = used or {}
    result = {}
    for name, share in mixture.items():
        drawn = share * total_tokens + used.get(name, 0)
        there = tokens_per_domain.get(name, 0)
        result[name] = drawn / there if there > 0 else (math.inf if drawn > 0 else 0.0)
    return result


def share_caps(
    available_tokens: Mapping[str, float],
    max_epochs: Mapping[str, float | None],
    used_tokens: Mapping[str, float],
    stage_tokens: float,
) -> dict[str, float]:
    """The greatest share of each domain in a stage: (max_epochs * available - used) / stage, within [0, 1].

    Args:
        available_tokens: training tokens there are, by domain.
        max_epochs: passes allowed over the whole run; None or no entry means any number. A domain without
            tokens gets 0 whatever its entry.
        used_tokens: tokens drawn before the stage; domains it leaves out get 0.
        stage_tokens: length of the stage, above 0.

    Raises:
        UserError: no mixture meets the caps, because they sum to less than 1; `stage_tokens` is not above 0,
            or a number of passes is negative.
    """
    if not 0 < stage_tokens < math.inf:
        raise UserError("a stage needs a number of tokens above 0", key="stage_tokens", value=stage_tokens)
    left = {}
    for name, there in available_tokens.items():
        passes = max_epochs.get(name)
        if passes is not None and not passes >= 0:
            remedy = "give a number of at least 0, or leave it out for no limit"
            raise UserError(
                "the number of epochs cannot be negative",
                key=f"max_epochs.{name}",
                value=passes,
                remedy=remedy,
            )
        if there <= 0:
            left[name] = 0.0
        else:
            left[name] = math.inf if passes is None else max(0.0, passes * there - used_tokens.get(name, 0))
    if math.fsum(left.values()) < stage_tokens * (1 - ROUNDING):
        raise _too_long(available_tokens, max_epochs, stage_tokens, left)
    return {name: min(1.0, tokens / stage_tokens) for name, tokens in left.items()}


def fit_to_caps(
    mixture: Mixture, caps: Mapping[str, float], lower: Mapping[str, float] | None = None
) -> tuple[Mixture, dict[str, float]]:
    """The mixture within the caps that keeps the proportions of `mixture` wherever it can.

    What a cap cuts off goes to the other domains in proportion to their shares (water-filling, see
    `mixture.fill_box`). A share of 0 stays 0 unless the domains with shares above 0 cannot fill the mixture.

    Args:
        mixture: the mixture wanted.
        caps: greatest share by domain; domains it leaves out may have any share.
        lower: least share by domain; domains it leaves out may have 0.

    Returns:
        The mixture, over the same domains, and the change of each share that moved (they sum to 0).

    Raises:
        UserError: the caps of the mixture's domains sum to less than 1, the least shares to more than 1, or a
            least share is above its cap.
    """
    names = mixture.domains
    wanted = mixture.array()
    upper = np.clip([caps.get(name, 1.0) for name in names], 0.0, 1.0)
    least = np.array([(lower or {}).get(name, 0.0) for name in names], dtype=np.float64)
    for name, low, high in zip(names, least.tolist(), upper.tolist(), strict=True):
        if low > high + ROUNDING:
            problem = f"the least share is above the greatest that the data allow, {high:.6g}"
            raise UserError(problem, key=name, value=low, remedy="lower it, or allow more epochs")
    if upper.sum() < 1 - ROUNDING:
        capped = sorted(zip(upper.tolist(), names, strict=True))
        listed = _listed([f"{name} at most {high:.4g}" for high, name in capped])
        raise UserError(
            f"the greatest shares that the data allow sum to {upper.sum():.4f}, below 1: {listed}",
            key="mixture",
            remedy="train for fewer steps, allow more epochs, or add data",
        )
    if ((wanted <= upper + ROUNDING) & (wanted >= least - ROUNDING)).all():
        return mixture, {}
    taking = (wanted > 0) | (least > 0)
    if upper[taking].sum() < 1 - ROUNDING:
        taking[:] = True
    shares = np.zeros_like(wanted)
    shares[taking] = fill_box(wanted[taking], np.minimum(least, upper)[taking], upper[taking])
    change = dict(zip(names, (shares - wanted).tolist(), strict=True))
    moved = {name: delta for name, delta in change.items() if abs(delta) > ROUNDING}
    return Mixture.from_array(names, shares), moved


def _too_long(
    available: Mapping[str, float],
    max_epochs: Mapping[str, float | None],
    stage_tokens: float,
    left: Mapping[str, float],
) -> UserError:
    """The error for a stage that asks for more tokens than all domains may still give."""
    missing = stage_tokens - math.fsum(left.values())
    more = missing / max(1.0, math.fsum(available.values()))
    lines = []
    for name in sorted(available, key=lambda name: -available[name]):
        if available[name] > 0:
            whole = f"{available[name]:,.0f} x {max_epochs[name]:g} epochs"
            part = f"{more * available[name]:,.0f} too few for its part"
            lines.append(f"{name} has {left[name]:,.0f} left of {whole}, {part}")
        else:
            lines.append(f"{name} has no tokens")
    return UserError(
        f"the plan asks for {stage_tokens:,.0f} tokens, exceeds the {stage_tokens - missing:,.0f} there are "
        f"by {missing:,.0f}, or {more:.3g} epochs of all data: {_listed(lines)}",
        key="max_epochs",
        remedy="train for fewer steps, allow more epochs, or add data",
    )


def _listed(parts: list[str]) -> str:
    more = [f"and {len(parts) - SHOWN} more"] if len(parts) > SHOWN else []
    return "; ".join(parts[:SHOWN] + more)
